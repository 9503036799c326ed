"""Which tags are wanted, and what they point at upstream: the cheap half of a run, and all of it when nothing has changed.

A tag costs one HEAD, which registries with a quota do not count. If the includes name their tags without wildcards, the list is not even
asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from entrepot.content.filters import FilterInvalid, TagFilter
from entrepot.errors import EntrepotError, UpstreamError, UpstreamInvalid, UpstreamNotFound
from entrepot.oci.errors import excerpt
from entrepot.oci.reference import TagInvalid, parse_tag
from entrepot.upstream.client import Resolved, UpstreamClient
from entrepot_syncer.outcome import Failures
from entrepot_syncer.progress import Progress
from entrepot_syncer.spec import SourceSpec

__all__ = ["FilterUnusable", "Selection", "select", "work_through"]

T = TypeVar("T")


class FilterUnusable(EntrepotError):
    """An entry of includeTags or excludeTags cannot be used."""

    default_reason = "InvalidFilter"


@dataclass(slots=True)
class Selection:
    """What is to be mirrored: a small constant of memory for each tag."""

    tags: dict[str, str] = field(default_factory=dict)
    """The digest that each tag points at upstream."""
    digests: set[str] = field(default_factory=set)
    """Manifests that were asked for by digest."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of the manifests, as far as the upstream told."""
    selected: int = 0
    """Tags and digests that were to be mirrored, those that failed included."""

    @property
    def roots(self) -> list[str]:
        """All digests, each once."""
        return list(dict.fromkeys([*self.digests, *self.tags.values()]))


async def work_through(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, workers: int) -> None:
    """Do `work` for each item, `workers` at a time, without a task for each; the first error ends all."""
    source = iter(items)

    async def worker() -> None:
        for item in source:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        # Workers stop one another; what stopped the first says it all.
        raise errors.exceptions[0] from errors


async def select(client: UpstreamClient, source: SourceSpec, *, failures: Failures, progress: Progress) -> Selection:
    """List, filter, and ask what each tag points at.

    Raises:
        UpstreamError: the repository cannot be listed; single tags that cannot be resolved go to `failures`.
        FilterUnusable: the filters are wrong.
    """
    try:
        wanted = TagFilter(tuple(source.include_tags), tuple(source.exclude_tags))
    except FilterInvalid as error:
        raise FilterUnusable(f"includeTags or excludeTags: {error}") from error
    selection = Selection(digests={str(digest) for digest in wanted.digests})
    selection.selected = len(selection.digests)
    exact = wanted.exact_names
    names = sorted(exact) if exact is not None else await _listed(client, wanted, failures, selection)
    selection.selected += len(names)
    progress.phase = "Comparing"
    progress.tags_total = selection.selected
    absent = 0
    shared: dict[str, str] = {}

    async def resolve(name: str) -> None:
        nonlocal absent
        try:
            found: Resolved = await client.resolve(name)
        except UpstreamNotFound as error:
            absent += 1
            if exact is None:
                failures.add(name, error)
        except UpstreamError as error:
            failures.add(name, error)
        else:
            text = str(found.digest)
            # One string for all tags that point at the same manifest.
            digest = shared.setdefault(text, text)
            selection.tags[name] = digest
            if found.size:
                selection.sizes[digest] = found.size

    await work_through(names, resolve, workers=source.download_concurrency)
    if exact is not None:
        selection.selected -= absent
        if names and absent == len(names):
            await _ensure_repository(client)
    return selection


async def _listed(client: UpstreamClient, wanted: TagFilter, failures: Failures, selection: Selection) -> list[str]:
    names: dict[str, None] = {}
    async for page in client.tags():
        for name in page:
            if name in names or not wanted.selects(name):
                continue
            try:
                names[parse_tag(name)] = None
            except TagInvalid as error:
                selection.selected += 1
                failures.add(excerpt(name, 128), UpstreamInvalid(str(error), reason="TagInvalid"))
    return list(names)


async def _ensure_repository(client: UpstreamClient) -> None:
    """Where none of the tags that are named exists, it may be the repository that does not: only a listing tells."""
    async for _ in client.tags():
        return
