"""Jobs by id.

Knows:         that ids are dense and rise, and that old ones go.
Must not know: what happens to a job, queues, time.

Pages because a dict of a million jobs stops the loop for 26 ms when it grows. Ids are dense, so a slot costs 8 bytes,
and a page is a stable place for cursors and for a snapshot that walks by. A page that is complete and nearly empty
becomes a dict; the newest page still fills, and the next job is appended to it.

    _full     page number (id >> 12) -> list of up to 4,096 slots
    _holes    page number -> how many slots of that list have no job
    _sparse   page number -> id -> job
"""

from collections.abc import Iterator
from typing import Final

from jqd.core.model import Job

PAGE_SHIFT: Final = 12
PAGE_JOBS: Final = 1 << PAGE_SHIFT
_SLOT: Final = PAGE_JOBS - 1
# Below this many jobs a list of 4,096 slots wastes more than a dict does.
_SPARSE_JOBS: Final = PAGE_JOBS // 16


class Pages:
    """See the file's card."""

    __slots__ = ("_full", "_holes", "_sparse", "next_id")

    def __init__(self) -> None:
        self.next_id = 1
        self._full: dict[int, list[Job | None]] = {}
        self._holes: dict[int, int] = {}
        self._sparse: dict[int, dict[int, Job]] = {}

    # --- reading ------------------------------------------------------------------------------

    def get(self, job_id: int) -> Job | None:
        """Return a job, or None if there is none of this id."""
        page = self._full.get(job_id >> PAGE_SHIFT)
        if page is not None:
            slot = job_id & _SLOT
            return page[slot] if slot < len(page) else None
        sparse = self._sparse.get(job_id >> PAGE_SHIFT)
        return sparse.get(job_id) if sparse is not None else None

    def run(self, first: int, count: int) -> list[Job | None]:
        """Return the jobs of consecutive ids; None where there is no job."""
        page = self._full.get(first >> PAGE_SHIFT)
        start = first & _SLOT
        if page is not None and start + count <= len(page):
            return page[start : start + count]
        return [self.get(job_id) for job_id in range(first, first + count)]

    def jobs_from(self, job_id: int) -> Iterator[Job]:
        """Yield all jobs with ids from `job_id` on, in order of their ids. Not to be kept over a change."""
        for number in sorted(self._full.keys() | self._sparse.keys()):
            if number < job_id >> PAGE_SHIFT:
                continue
            page = self._full.get(number)
            jobs = page if page is not None else [job for _, job in sorted(self._sparse[number].items())]
            for job in jobs:
                if job is not None and job.id >= job_id:
                    yield job

    def jobs_between(self, first: int, end: int) -> list[Job]:
        """Return the jobs with ids from `first` to below `end`, in order; all ids of one page."""
        page = self._full.get(first >> PAGE_SHIFT)
        if page is not None:
            slot = first & _SLOT
            return [job for job in page[slot : slot + end - first] if job is not None]
        sparse = self._sparse.get(first >> PAGE_SHIFT, {})
        return [sparse[job_id] for job_id in sorted(sparse) if first <= job_id < end]

    def numbers(self) -> list[int]:
        """Return the numbers of the pages that hold jobs, falling."""
        return sorted(self._full.keys() | self._sparse.keys(), reverse=True)

    # --- writing ------------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        """Add one new job: it has the next id."""
        page = self._full.get(job.id >> PAGE_SHIFT)
        self.next_id = job.id + 1
        if page is not None:
            page.append(job)
        else:
            self.put(job.id, [job])

    def extend(self, jobs: list[Job]) -> None:
        """Add new jobs: they have the next ids."""
        first = self.next_id
        page = self._full.get(first >> PAGE_SHIFT)
        self.next_id = first + len(jobs)
        if page is not None and len(page) + len(jobs) <= PAGE_JOBS:
            page += jobs
        else:
            self.put(first, jobs)

    def put(self, first_id: int, jobs: list[Job]) -> None:
        """Put jobs with consecutive ids above all that are there into their pages, which may have to be made."""
        taken = 0
        while taken < len(jobs):
            number, slot = (first_id + taken) >> PAGE_SHIFT, (first_id + taken) & _SLOT
            page = self._full.get(number)
            if page is None:
                page = self._full[number] = []
                self._thin_out(number - 1)
            if slot > len(page):
                self._note_holes(number, slot - len(page))
                page.extend([None] * (slot - len(page)))
            part = jobs[taken : taken + PAGE_JOBS - slot]
            page.extend(part)
            taken += len(part)

    def skip_to(self, next_id: int) -> None:
        """Let the next job have this id, and none the ids between."""
        assert next_id >= self.next_id, f"ids only rise: {next_id} after {self.next_id - 1}"
        before, self.next_id = self.next_id >> PAGE_SHIFT, next_id
        self._fill_newest()
        self._thin_out(before)

    def finish_restoring(self, next_id: int) -> None:
        """All that was put back is there."""
        self.next_id = next_id
        self._fill_newest()
        for number in list(self._full):
            self._thin_out(number)

    def remove(self, first: int, count: int) -> None:
        """Empty the slots of consecutive ids, each of which has a job."""
        end = first + count
        while first < end:
            number, slot = first >> PAGE_SHIFT, first & _SLOT
            part = min(end - first, PAGE_JOBS - slot)
            sparse = self._sparse.get(number)
            if sparse is None:
                self._full[number][slot : slot + part] = [None] * part
                self._note_holes(number, part)
                self._thin_out(number)
            else:
                for job_id in range(first, first + part):
                    del sparse[job_id]
                if not sparse:
                    del self._sparse[number]
            first += part

    def _fill_newest(self) -> None:
        """See to it that the next job stands where it belongs in its page: new jobs are appended."""
        number = self.next_id >> PAGE_SHIFT
        page = self._full.get(number)
        if page is not None:
            missing = (self.next_id & _SLOT) - len(page)
            page += [None] * missing
            self._note_holes(number, missing)

    def _note_holes(self, number: int, count: int) -> None:
        if count:
            self._holes[number] = self._holes.get(number, 0) + count

    def _thin_out(self, number: int) -> None:
        """Turn a page that is complete and nearly empty into a dict."""
        page = self._full.get(number)
        if page is None or number == self.next_id >> PAGE_SHIFT:
            return
        holes = self._holes.get(number, 0)
        if len(page) - holes >= _SPARSE_JOBS:
            return
        self._holes.pop(number, None)
        left = {job.id: job for job in self._full.pop(number) if job is not None}
        if left:  # many may have gone at once, the last ones too
            self._sparse[number] = left

    # --- checking -----------------------------------------------------------------------------

    def check(self) -> None:
        """Assert that each job stands where its id says, and that the holes are counted."""
        assert all(self.get(job.id) is job for job in self.jobs_from(0)), "a job stands in another's slot"
        holes = {number: sum(job is None for job in page) for number, page in self._full.items()}
        assert self._holes == {number: count for number, count in holes.items() if count}
        assert all(self._sparse.values()), "a page without jobs is still there"
