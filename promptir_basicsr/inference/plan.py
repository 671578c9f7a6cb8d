"""Choose input and output files before any image is restored."""

import glob
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from promptir_basicsr.core.errors import OptionError, raise_problems
from promptir_basicsr.core.files import is_regular
from promptir_basicsr.core.messages import first_few, printable
from promptir_basicsr.core.vocabulary import PICTURE_FORMATS
from promptir_basicsr.pictures.picture import EXTENSIONS, UNREAD, extension_of, format_of, unread_pictures

Size = tuple[int, int]


@dataclass(frozen=True)
class Job:
    """An image file to restore.

    Attributes:
        source, target: paths.
        kind: format of the target, one of the values of PICTURE_FORMATS; None for the source's.
        size: height and width of the source, if known.
    """

    source: str
    target: str
    kind: str | None = None
    size: Size | None = None


@dataclass(frozen=True)
class Plan:
    """All files to restore.

    Attributes:
        jobs: in the order of the inputs, sorted within folders and patterns.
        foreign: number of files in folders and patterns without the extension of an image.
        left_out: messages about skipped image files: unsupported formats, and files that are not regular.
        present: number of existing results that are not replaced.
    """

    jobs: list[Job]
    foreign: int = 0
    present: int = 0
    left_out: Sequence[str] = ()


def plan_restoration(
    inputs: Sequence[str],
    out: str,
    recursive: bool = False,
    suffix: str = '',
    extension: str | None = None,
    overwrite: bool = False,
    skip_existing: bool = False,
) -> Plan:
    """Find the inputs and name the outputs; nothing is written.

    Args:
        inputs: files, folders, patterns (`*`, `?`, `[...]`, `**` for any folders).
        out: a folder, or a file for a single input file.
        recursive: include subfolders, with the same tree in the output.
        suffix: added between name and extension.
        extension: one of PICTURE_FORMATS for all outputs. Default: the inputs' own.
        overwrite, skip_existing: replace or skip existing outputs; otherwise they are an error.

    Raises:
        OptionError: lists all mistakes.
    """
    out = os.path.expanduser(out)
    found = _Found()
    for given in inputs:
        _find(given, out, recursive, found)
    problems = found.problems
    if any(sign in suffix for sign in ('/', os.sep, '\0')):
        message = f"--suffix: '{printable(suffix)}' contains a path separator. Use a part of a file name."
        problems.append(message)
    left_out = [
        *unread_pictures(found.unread),
        *(f'{_quoted(path)} skipped: not a regular file.' for path in found.special),
    ]
    if not problems and not found.files:
        more = f' {found.foreign:,} files have other extensions.' if found.foreign else ''
        more += ''.join(f' {line}' for line in left_out)
        problems.append(f'no images found in {first_few(map(_quoted, inputs))}.{more} Known: {", ".join(EXTENSIONS)}.')
    raise_problems(problems)
    files = list(dict.fromkeys((os.path.normpath(source), relative) for source, relative in found.files))
    if found.single and not os.path.isdir(out) and not out.endswith(('/', os.sep)) and format_of(out) is not None:
        jobs = [_single(files[0][0], out, suffix, extension)]
    else:
        jobs = [_job(source, os.path.join(out, relative), suffix, extension) for source, relative in files]
        problems += _folder_problems(out, len(files))
    problems += _collisions(jobs) + _inputs_hit(jobs)
    present = [job for job in jobs if os.path.lexists(job.target)]
    if present and not problems and not overwrite and not skip_existing:
        names = first_few(_quoted(job.target) for job in present)
        problems.append(
            f'{names} {"exists" if len(present) == 1 else "exist"} already. --overwrite replaces them, --skip-existing '
            'skips them.'
        )
    raise_problems(problems)
    skipped = {job.target for job in present} if skip_existing else set()
    return Plan([job for job in jobs if job.target not in skipped], found.foreign, len(skipped), left_out)


@dataclass
class _Found:
    """Files, each with its path in the output folder."""

    files: list[tuple[str, str]] = field(default_factory=list)
    foreign: int = 0
    unread: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    single: bool = False
    problems: list[str] = field(default_factory=list)

    def add(self, source: str, relative: str) -> None:
        """Add a file of a folder or pattern; hidden files and other formats are skipped."""
        if os.path.basename(source).startswith('.'):
            return
        if extension_of(source) in EXTENSIONS:
            if is_regular(source):
                self.files.append((source, relative))
            else:
                self.special.append(source)
        elif extension_of(source) in UNREAD:
            self.unread.append(source)
        else:
            self.foreign += 1


def _find(given: str, out: str, recursive: bool, found: _Found) -> None:
    path = os.path.expanduser(given)
    if os.path.isdir(path):
        _walk(path, out, recursive, given, found)
    elif os.path.lexists(path):
        found.single = not found.files
        found.files.append((path, os.path.basename(path)))
        return
    elif glob.has_magic(path):
        _match(path, given, out, found)
    else:
        found.problems.append(f"'{printable(given)}' does not exist. Paths are relative to the current folder.")
    found.single = False


def _walk(folder: str, out: str, recursive: bool, given: str, found: _Found) -> None:
    """Find the files of a folder. Those in OUT are results of an earlier run."""
    results, below, before = os.path.realpath(out), False, len(found.files)
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith('.') and os.path.realpath(os.path.join(place, name)) != results
        )
        below |= bool(folders)
        for name in sorted(names):
            source = os.path.join(place, name)
            found.add(source, os.path.relpath(source, folder))
        if not recursive:
            break
    if below and not recursive and len(found.files) == before:
        found.problems.append(f"'{printable(given)}' contains only folders, no images. Use -r to include them.")


def _match(pattern: str, given: str, out: str, found: _Found) -> None:
    """Find the files of a pattern, without results of an earlier run; the tree below its last plain folder is kept."""
    root = Path(pattern)
    while glob.has_magic(str(root)):
        root = root.parent
    files = sorted(path for path in set(glob.glob(pattern, recursive=True)) if not os.path.isdir(path))
    if not files:
        found.problems.append(f"'{printable(given)}' matches no files.")
    results = os.path.realpath(out)
    inside = results != os.path.realpath(root)
    for path in files:
        if not (inside and os.path.realpath(path).startswith(results + os.sep)):
            found.add(path, os.path.relpath(path, root))


def _single(source: str, out: str, suffix: str, extension: str | None) -> Job:
    if suffix:
        raise OptionError(f"--suffix: '{printable(out)}' is an existing file; use a folder, or omit the suffix.")
    if extension and PICTURE_FORMATS[extension] != format_of(out):
        raise OptionError(f"--format: {extension} and the file '{printable(out)}' contradict each other.")
    return Job(source, out, format_of(out))


def _job(source: str, target: str, suffix: str, extension: str | None) -> Job:
    stem, own = os.path.splitext(target)
    if extension:
        return Job(source, f'{stem}{suffix}.{extension}', PICTURE_FORMATS[extension])
    if own[1:].lower() in _KEPT:
        return Job(source, f'{stem}{suffix}{own}')
    return Job(source, f'{stem}{suffix}.png', 'PNG')  # other formats can only be read


_KEPT = {*PICTURE_FORMATS, 'jpe', 'jfif', 'mpo', 'dib'}


def _folder_problems(out: str, count: int) -> list[str]:
    if os.path.lexists(out) and not os.path.isdir(out):
        return [f"-o: '{printable(out)}' is a file; use a folder."]
    if os.path.isdir(out) or out.endswith(('/', os.sep)) or extension_of(out) not in EXTENSIONS:
        return []
    if count == 1 and format_of(out) is None:
        return [f"-o: '{printable(out)}' cannot be written. Formats: {', '.join(PICTURE_FORMATS)}."]
    return [f"-o: '{printable(out)}' looks like a file, but there may be several inputs ({count:,} now). Use a folder."]


def _collisions(jobs: Sequence[Job]) -> list[str]:
    sources: dict[str, list[str]] = defaultdict(list)
    for job in jobs:
        sources[os.path.normcase(os.path.abspath(job.target))].append(job.source)
    doubled = [(target, names) for target, names in sources.items() if len(names) > 1]
    return [
        f'{first_few(map(_quoted, names))} have the same output {_quoted(target)}. Restore them to different folders.'
        for target, names in doubled[:5]
    ] + ([f'{len(doubled) - 5:,} more outputs have several inputs.'] if len(doubled) > 5 else [])


def _inputs_hit(jobs: Sequence[Job]) -> list[str]:
    """Find outputs that are inputs, under any name; these are never replaced."""
    inputs = {os.path.realpath(job.source) for job in jobs}
    hit = [job.target for job in jobs if os.path.realpath(job.target) in inputs]
    names = first_few(map(_quoted, hit))
    return [f'{names}: inputs are never overwritten. Use another folder with -o, or a --suffix.'] if hit else []


def _quoted(path: str) -> str:
    return f"'{printable(path)}'"
