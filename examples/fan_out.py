"""Fan-out and wait: count the words of many files, each in a job, and add them up.

    jqd worker fan_out:app -c 4 --pool process &
    python fan_out.py *.md

The program and the workers need to see the same files.
"""

import asyncio
import sys
from pathlib import Path

import jqd

app = jqd.App()


@app.task(max_retries=2)
def count(path: str) -> int:
    """Count the words of one file."""
    try:
        return len(Path(path).read_text(encoding="utf-8").split())
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise jqd.Fail(str(error)) from error  # no retry would help


async def main(paths: list[str]) -> int:
    """Print the sum; the exit code says whether every file was counted."""
    async with app:
        # One request for up to 10,000 jobs: all of them are on disk when it returns, or none.
        handles = await count.map(paths)
        # Results come as they are ready, in the order of the paths. One that failed does not end the others.
        results = await asyncio.gather(*(job.wait(timeout="1m") for job in handles), return_exceptions=True)
    words = 0
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, int):  # and mypy knows that it is nothing else
            words += result
        elif isinstance(result, jqd.errors.JobFailed):
            print(f"{path}: {result.error}", file=sys.stderr)
        else:  # WaitTimeout, or no daemon: nothing to do with the file
            raise result
    print(words)
    return 0 if all(isinstance(result, int) for result in results) else 1


if __name__ == "__main__":
    # A worker may have been started elsewhere: a name that only holds here means nothing to it.
    sys.exit(asyncio.run(main([str(Path(name).resolve()) for name in sys.argv[1:]])))
