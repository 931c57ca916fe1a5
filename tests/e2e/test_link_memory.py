"""Large bodies cost the hospital's process a few chunks of memory, not their size."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from .link_world import World, within

LARGE = 200 << 20
MOST_GROWTH_KB = 64 << 10
CHILD = Path(__file__).with_name("link_child.py")


def test_a_large_body_costs_a_few_chunks(tmp_path: Path) -> None:
    async def main() -> None:
        async with World(tmp_path) as world:
            folder = tmp_path / "child"
            folder.mkdir()
            consortium = world.consortium
            consortium.keys["north"].save(folder / "site.key")
            (folder / "chain.pem").write_text(consortium.chain("north"))
            (folder / "root.pem").write_text(consortium.root.pem)
            (folder / "roster.json").write_bytes(consortium.data)
            child = await asyncio.create_subprocess_exec(
                sys.executable, str(CHILD), str(folder), str(world.port), stdout=-1
            )
            assert child.stdout is not None
            try:
                peaks = []
                for number, size in enumerate((4 << 20, LARGE), start=1):
                    body = tmp_path / f"body{number}"
                    with body.open("wb") as file:
                        for _ in range(size >> 20):
                            file.write(os.urandom(1 << 20))
                    task = world.task("north", body, round_number=number)
                    answer = (await world.collect(task))["north"]
                    assert answer.body is not None
                    assert answer.body.stat().st_size == size
                    peaks.append(int(await child.stdout.readline()))
            finally:
                child.kill()
                await child.communicate()
            assert peaks[1] - peaks[0] < MOST_GROWTH_KB

    within(main())
