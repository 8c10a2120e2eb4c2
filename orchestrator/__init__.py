"""From a KVM patch in a mail to a verdict: is it correct, is it faster, and why."""

__version__ = "1.0.0"
