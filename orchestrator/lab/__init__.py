"""The machines of ``target: ssh``: the lab file, their health, their leases, and how they are tuned and booted.

``lab.load(path)`` reads a lab file; :mod:`orchestrator.target.ssh` runs trials on its machines.
"""

from orchestrator.lab.reader import load
from orchestrator.lab.types import KNOBS, Boot, Deadlines, Knob, Lab, LabHost

__all__ = ["KNOBS", "Boot", "Deadlines", "Knob", "Lab", "LabHost", "load"]
