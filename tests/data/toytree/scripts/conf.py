"""A toy kconfig: bool symbols with `depends on A && !B` and `select`, and strings."""

import re
import sys
from pathlib import Path


def main(target: str, kconfig: str, config: str, *allconfig: str) -> None:
    wanted = read(Path(allconfig[0] if target == "allnoconfig" else config))
    have: dict[str, str] = {}
    for _ in range(5):  # Until dependencies have settled.
        for name, rest in blocks(Path(kconfig)):
            value = wanted.get(name, "n")
            if any(f"select {name}\n" in body and have.get(other) == "y" for other, body in blocks(Path(kconfig))):
                value = "y"
            for condition in re.findall(r"depends on (.*)", rest):
                for word in condition.split(" && "):
                    if (have.get(word.lstrip("!"), "n") != "n") == word.startswith("!"):
                        value = "n"
            have[name] = value
    lines = [f"CONFIG_{k}={v}" if v != "n" else f"# CONFIG_{k} is not set" for k, v in have.items()]
    text = "\n".join(lines) + "\n"
    if not Path(config).is_file() or Path(config).read_text() != text:
        Path(config).write_text(text)


def read(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^CONFIG_(\w+)=(.*)$", path.read_text(), re.MULTILINE))


def blocks(path: Path) -> list[tuple[str, str]]:
    parts = re.split(r"^config (\w+)\n", path.read_text(), flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
