"""AllInOneDataset: a dataset of several degradations."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from scipy.special import ndtri
from torch.utils.data import Dataset

from promptir_basicsr.core.arrays import to_float, to_grey, to_tensor
from promptir_basicsr.core.errors import ImageError, raise_problems
from promptir_basicsr.core.messages import first_few, unknown_keys
from promptir_basicsr.core.problems import Keys, keys
from promptir_basicsr.core.registry import register
from promptir_basicsr.core.vocabulary import MAX_PIXELS
from promptir_basicsr.data.images import PixelImage, centre_area, centre_crop, flip_rotate, reflect_to
from promptir_basicsr.data.protocol import expand_protocol
from promptir_basicsr.data.sampler import EpochIndex
from promptir_basicsr.data.sampling import TaskShare, check_sampling, check_shares, epoch_shares
from promptir_basicsr.data.sources import BorderCut, StoredImage
from promptir_basicsr.data.stages import by_stage, check_stages, stages_of
from promptir_basicsr.data.tasks import Task, TaskSurvey, known_count, survey_tasks
from promptir_basicsr.degradations.spec import Degrade
from promptir_basicsr.options.data import AllInOneOptions, AllInOneTrainingOptions, LoadedDataset

_LEVELS = 1 << 16

logger = logging.getLogger('basicsr')

# Keys of a dataset's options that BasicSR's loader and option parser read or set.
HOST_KEYS = tuple(LoadedDataset.model_fields)
DATASET_KEYS = tuple(AllInOneTrainingOptions.model_fields)


class TrainingGenerator(np.random.Generator):
    """numpy's generator with faster normal numbers; all other numbers are those of `numpy.random.default_rng(seed)`.

    A normal number is the sum of two out of 65,536 equally probable quantiles of a normal distribution, because numpy's
    normal numbers took most of the time of a noisy training sample. Values reach 6.1 standard deviations, and the
    distribution function is normal to within 1e-5. Validation inputs use numpy's own generator.
    """

    def __init__(self, seed: int | Sequence[int]) -> None:
        super().__init__(np.random.PCG64(seed))

    def standard_normal(self, size: Any = None, dtype: Any = np.float64, out: np.ndarray | None = None) -> Any:
        """Draw numbers of mean 0 and standard deviation 1, like numpy's method; accurate to float32."""
        shape = () if size is None else size
        if out is not None:
            out[...] = self.standard_normal(out.shape if size is None else size, dtype)
            return out
        count = int(np.prod(shape))
        drawn = self.bit_generator.random_raw((count + 1) // 2).view('<u2')  # four per draw, two per number
        normal = _quantiles().take(drawn[:count], mode='wrap')
        normal += _quantiles().take(drawn[count : 2 * count], mode='wrap')
        return normal.reshape(shape).astype(dtype, copy=False) if size is not None else dtype(normal[0])


@cache
def _quantiles() -> np.ndarray:
    """Quantiles of a normal distribution: (65536,) float32 of variance 1/2."""
    values = ndtri((np.arange(_LEVELS) + 0.5) / _LEVELS)
    return (values / np.sqrt(2 * np.mean(values**2))).astype(np.float32)


@register(DATASET_REGISTRY)
class AllInOneDataset(Dataset):
    """Mixes the tasks of an all-in-one protocol: paired images, or clean images that are degraded on the fly.

    Training samples are random crops, validation samples are whole images. Every random draw of a training sample
    depends on (seed, epoch, index) only, so neither the number of workers nor resuming changes a sample. The
    degradation of a validation image depends on (seed, image name, degradation) only, so it is the same in every
    validation, run and folder layout.

    Options (`opt`, a mapping):
        name: name in logs.
        phase: `train`, or `val` / `test`; set by BasicSR from the key of the dataset.
        dataroot: root of relative paths of the tasks. Default: the current folder.
        protocol: name or file of a protocol, whose options are overridden by those set here; see `docs/protocols.md`.
        tasks: see `docs/data.md`. With `protocol`, changes to its tasks by name, or a list that replaces them.
        degradations: the vocabulary; the position of a word is its label. Default: denoise, derain, dehaze, deblur,
            lowlight.
        sampling: shares of the tasks other than by `copies`, see `docs/sampling.md`; training only.
        gt_size: side of the square training crop in pixels. Smaller images are padded by reflection.
        stages: other crop sizes and batch sizes from given iterations on, see `docs/data.md`; training only.
        crop_multiple: crop the image at its centre so that both sides are multiples of this (16 in the published
            protocols). Default: 1, no crop.
        second_crop: samples have `lq_key`, see below; training only. Default: False.
        use_hflip: random horizontal flips. Default: False.
        use_rot: random vertical flips and 90 degree rotations. Default: False.
        augment_identity: whether the unchanged crop is among the flips and rotations. The released programs never
            draw it. Default: True.
        max_pixels: images with more pixels are refused. Default: 178,956,970.
        seed: of all random draws. For training `basicsr train` sets it to `manual_seed`. Default: 0.

    A sample is a dict:
        lq, gt: degraded and clear image: (3, H, W) float32, RGB, [0, 1], or (1, H, W) grey with `channels: 1`.
        lq_key: with `second_crop`, another crop of the same image, like lq: with its own position, flip and noise, but
            the degradation parameters that were drawn for lq.
        lq_path, gt_path: files of the images.
        task: name of the task.
        degradation: label of the task, an int.
        bits: bit depth of the input's file, 8 or 16; not in training.
        name: the image's name within the task, without extension and with `/` as `_`; unique within the task.

    Raises:
        OptionError: all problems of the options, including missing folders and files.

    Examples:
        >>> from promptir_basicsr.data import AllInOneDataset
        >>> task = {'type': 'denoise', 'clean': 'skimage://', 'files': ['coffee.png'], 'degrade': {'type': 'jpeg'}}
        >>> dataset = AllInOneDataset({'name': 'mine', 'phase': 'train', 'gt_size': 32, 'tasks': [task]})
        >>> sample = dataset[0, 0]  # epoch and index
        >>> sample['lq'].shape, sample['task'], sample['degradation']
        (torch.Size([3, 32, 32]), 'denoise', 0)
    """

    takes_epoch = True

    def __init__(self, opt: Mapping[str, Any]) -> None:
        where = f'datasets.{opt.get("name", opt.get("phase", "train"))}'
        self.opt = opt = expand_protocol(opt, where)
        self.training = opt.get('phase', 'train') == 'train'
        self.tasks = _CHECKED.pop(_tasks_key(opt), []) or check_dataset(opt, where)
        self.seed = opt.get('seed') or 0
        self.gt_size: int = opt.get('gt_size') or 0
        self.crop_multiple = opt.get('crop_multiple', 1)
        self.second_crop = self.training and bool(opt.get('second_crop'))
        self.stages = stages_of(opt) if opt.get('stages') else []
        self.epoch = 0
        self._flip_modes = flip_modes(opt)
        self.shares = epoch_shares(self.tasks, opt)
        self._epoch_index = EpochIndex(self.shares, self.seed)
        self._image_names = [unique_names([lq for lq, _ in task.names]) for task in self.tasks]
        # Shared with the workers, so that they warn only once.
        self._enlarged = torch.zeros(len(self.tasks), dtype=torch.bool).share_memory_()
        for size in dict.fromkeys(by_stage(opt, 'gt_size').values() if self.training else ()):
            if size % self.crop_multiple:
                logger.warning(f'{where}: gt_size {size} is not a multiple of crop_multiple {self.crop_multiple}.')
        for line in describe_tasks(self.tasks, opt.get('name', ''), self.training, self.shares):
            logger.info(line)

    @property
    def remarks(self) -> list[str]:
        """Remarks for tables of results: numbers of images that differ from the published ones."""
        return [note for task in self.tasks for note in _count_notes(task)]

    @property
    def made_by(self) -> dict[str, str]:
        """How the degraded images of each task are made, and the crop before; to compare results."""
        cut = f', cut to multiples of {self.crop_multiple}' if self.crop_multiple > 1 else ''
        cut += ', grey' if self.tasks[0].channels == 1 else ''
        return {task.name: (task.degrade.describe() if task.degrade else 'pairs') + cut for task in self.tasks}

    def __len__(self) -> int:
        return len(self._epoch_index)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every sample once, in order; without this method iteration would not end, see `__getitem__`."""
        return (self[index] for index in range(len(self)))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of samples that are requested by a plain index, as third-party samplers do."""
        self.epoch = epoch

    def __getitem__(self, key: int | tuple[int, ...]) -> dict[str, Any]:
        """Load a sample.

        Args:
            key: an index, or (epoch, index) or (epoch, index, gt_size) from `EpochSampler`. `EpochIndex` maps it to an
                image. Training indices at or beyond the length are further draws (`dataset_enlarge_ratio`).
        """
        epoch, index, *crop = key if isinstance(key, tuple) else (self.epoch, key)
        if index < 0:
            index += len(self)
        number, position = self._epoch_index.locate(epoch, index)
        task = self.tasks[number]
        lq_name, gt_name = task.names[position]
        try:
            if self.training:
                rng = TrainingGenerator([self.seed, epoch, index])
                images = self._training_images(number, lq_name, gt_name, crop[0] if crop else self.gt_size, rng)
            else:
                images, bits = self._whole_images(task, lq_name, gt_name, self._image_names[number][position])
        except ImageError as error:
            raise ImageError(f"task '{task.name}': {error}") from error
        return {
            **({} if self.training else {'bits': bits}),
            **{key: to_tensor(image) for key, image in images.items()},
            'lq_path': task.lq.where(lq_name),
            'gt_path': task.gt.where(gt_name),
            'task': task.name,
            'degradation': task.label,
            'name': self._image_names[number][position],
        }

    def _training_images(
        self, number: int, lq_name: str, gt_name: str, size: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """`lq`, `gt` and `lq_key`, whose random numbers are drawn last."""
        task = self.tasks[number]
        stored = self._open(task, lq_name, gt_name)
        if self.second_crop:  # decode once; two crops of a file would decode most of it twice
            stored = [PixelImage(image.pixels()) for image in stored]
        lq, gt, drawn = self._degraded(task, self._crop(number, lq_name, stored, size, rng), task.degrade, rng)
        if not self.second_crop:
            return {'lq': lq, 'gt': gt}
        key, _, _ = self._degraded(task, self._crop(number, lq_name, stored, size, rng), drawn, rng)
        return {'lq': lq, 'gt': gt, 'lq_key': key}

    def _crop(
        self, number: int, name: str, stored: Sequence[StoredImage], size: int, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """The same random square of each image of a pair, with the same flip and rotation."""
        top, left, height, width = centre_area(stored[0].size, self.crop_multiple)
        small = min(height, width) < size
        if small:
            self._warn_enlarged(number, name, (height, width), size)
        top += int(rng.integers(max(height, size) - size + 1))
        left += int(rng.integers(max(width, size) - size + 1))
        if small:
            whole = (reflect_to(centre_crop(image.pixels(), self.crop_multiple), size) for image in stored)
            top, left = top - (stored[0].size[0] - height) // 2, left - (stored[0].size[1] - width) // 2
            images = [image[top : top + size, left : left + size] for image in whole]
        else:
            images = [image.crop(top, left, size, size) for image in stored]
        mode = self._flip_modes[rng.integers(len(self._flip_modes))]
        return [flip_rotate(image, mode) for image in images]

    def _whole_images(self, task: Task, lq_name: str, gt_name: str, name: str) -> tuple[dict[str, np.ndarray], int]:
        """`lq` and `gt`, and the bit depth of the file of `lq`."""
        images = [centre_crop(image.pixels(), self.crop_multiple) for image in self._open(task, lq_name, gt_name)]
        rng = np.random.default_rng(stable_seed(self.seed, name, task.degrade.key if task.degrade else ''))
        lq, gt, _ = self._degraded(task, images, task.degrade, rng)
        return {'lq': lq, 'gt': gt}, 8 * images[0].itemsize

    def _open(self, task: Task, lq_name: str, gt_name: str) -> list[StoredImage]:
        """Open the stored images: [clean] or [degraded, clear]."""
        stored: list[StoredImage] = [task.gt.open(gt_name)]
        if task.paired:
            if task.crop_border_gt:
                stored[0] = BorderCut(stored[0], task.crop_border_gt)
            stored.insert(0, task.lq.open(lq_name))
            if stored[0].size != stored[1].size:
                sizes = ' and '.join(f'{width}x{height}' for height, width in (image.size for image in stored))
                raise ImageError(
                    f'{task.lq.where(lq_name)} and {task.gt.where(gt_name)} differ in size ({sizes}). '
                    'Check the pairing rule, crop both to the same area, or set `crop_border_gt`.'
                )
        return stored

    def _degraded(
        self, task: Task, images: Sequence[np.ndarray], degrade: Degrade | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, Degrade | None]:
        """Degraded and clear image, integers if nothing is degraded here, and the drawn degradation."""
        if task.channels == 1:
            images = [to_grey(image) for image in images]
        if degrade is None:
            return images[0], images[1], None
        clear = to_float(images[0])
        degraded, drawn = degrade.apply(clear, rng)
        return degraded, clear, drawn

    def _warn_enlarged(self, number: int, name: str, shape: Sequence[int], size: int) -> None:
        if not self._enlarged[number]:
            self._enlarged[number] = True
            logger.warning(
                f"task '{self.tasks[number].name}': {name} is {shape[1]}x{shape[0]}, smaller than the "
                f'{size} pixel crop; such images are padded by reflection. Shown once per task.'
            )


# Tasks that were built by a check for the dataset that follows, so that folders are listed once.
_CHECKED: dict[str, list[Task]] = {}


def keep_tasks(dataset: AllInOneDataset) -> None:
    """Keep the tasks of a dataset for the next dataset with the same options."""
    _CHECKED[_tasks_key(dataset.opt)] = dataset.tasks


def forget_tasks() -> None:
    """Discard kept tasks: the next dataset lists its folders again."""
    _CHECKED.clear()


def _tasks_key(opt: Mapping[str, Any]) -> str:
    """A key that is equal for the same tasks in the same phase."""
    relevant = {key: opt[key] for key in sorted(opt, key=str) if key not in HOST_KEYS and key != 'seed'}
    training = opt.get('phase', 'train') == 'train'
    return json.dumps([os.getcwd(), training, opt.get('name'), relevant], default=str)


def check_dataset(
    opt: Mapping[str, Any], where: str | Keys, keep: bool = False, surveys: dict[Keys, list[TaskSurvey]] | None = None
) -> list[Task]:
    """Check the options of an AllInOneDataset and build its tasks.

    Args:
        keep: a dataset with these options follows, and reuses the tasks instead of listing the folders again.
        surveys: see `build_tasks`.

    Raises:
        OptionError: all problems found.
    """
    opt = expand_protocol(opt, where)
    schema = AllInOneTrainingOptions if opt.get('phase', 'train') == 'train' else AllInOneOptions
    problems = unknown_keys(where, opt, (*HOST_KEYS, *schema.model_fields))
    opt, wrong = schema.sound(opt, where)
    found, more = survey_tasks(opt, where)
    if surveys is not None:
        surveys[keys(where)] = found
    tasks = [survey.task for survey in found if survey.task is not None]
    problems += [*wrong, *check_sampling(opt, where), *check_stages(opt, where), *more]
    for source in (source for task in tasks for source in (task.lq, task.gt)):
        source.max_pixels = opt.get('max_pixels', MAX_PIXELS)
    if not problems:
        problems += check_shares(tasks, opt, where)
    raise_problems(problems)
    if keep:
        _CHECKED[_tasks_key(opt)] = tasks
    return tasks


def describe_tasks(
    tasks: Sequence[Task], name: str, training: bool, shares: Sequence[TaskShare] | None = None
) -> list[str]:
    """Lines of a table with images, draws per image and share of the epoch of each task, then notes.

    Args:
        shares: of the epoch. Default: by `copies`, or by the tasks' weights.
    """
    if shares is None:
        shares = epoch_shares(tasks, {'phase': 'train' if training else 'val'})
    total, batch = sum(share.samples for share in shares), sum(share.in_batch for share in shares)
    copies = all(share.samples == len(task) * round(share.draws) for task, share in zip(tasks, shares, strict=True))
    width = max(len('task'), *(len(task.name) for task in tasks))
    grey = ' of grey images' if tasks[0].channels == 1 else ''
    head = f"Dataset '{name}': {len(tasks)} tasks{grey}, {total:,} samples{' per epoch' if training else ''}"
    lines = [head + (f', {batch} in every batch as shown' if batch else '')]
    fixed = '   asked  in batch' if batch else ''
    drawn = 'copies' if copies else 'draws'
    lines.append(
        f'  {"task":{width}}  {"type":9}  label  {"images":>7}  {drawn:>6}  {"samples":>8}{fixed}   share  made by'
    )
    for task, share in zip(tasks, shares, strict=True):
        made = task.degrade.describe() if task.degrade else 'pairs'
        fixed = f'  {share.asked:6.1%}  {share.in_batch:8}' if batch else ''
        lines.append(
            f'  {task.name:{width}}  {task.type:9}  {task.label:5}  {len(task):7,}  '
            f'{share.draws:{"6.0f" if copies else "6.2f"}}  {share.samples:8,}{fixed}  {share.share:6.1%}  {made}'
        )
    for task in tasks:
        if task.left_out:
            lines.append(
                f"  Note: task '{task.name}' skips {len(task.left_out):,} images of '{task.lq.root}' that do not "
                f'match its pairing rule: {first_few(task.left_out)}.'
            )
        lines += [f"  Note: task '{task.name}': {note}." for note in task.notes]
        lines += [f'  Note: {note}' for note in _count_notes(task)]
    unread = dict.fromkeys(line for task in tasks for source in (task.lq, task.gt) for line in source.unread)
    return lines + [f'  Note: {line}' for line in unread]


def _count_notes(task: Task) -> list[str]:
    """Notes on a number of images that differs from the published one."""
    found, expected = len(task), task.expected_images
    meaning = known_count(found, expected, task.known_counts)
    if not meaning and found == (expected or found):
        return []
    note = f"task '{task.name}'"
    if expected is None:
        return [f'{note}: {meaning}.']
    note += f': {meaning};' if meaning else f' has {found:,} images, the protocol has {expected:,}:'
    return [f'{note} results will not be comparable with published ones.']


def flip_modes(opt: Mapping[str, Any]) -> list[int]:
    """Flips and rotations to draw from; bits as in `flip_rotate`."""
    hflip, rot = opt.get('use_hflip', False), opt.get('use_rot', False)
    modes = [mode for mode in range(8) if (hflip or not mode & 1) and (rot or not mode & 6)]
    if not opt.get('augment_identity', True) and len(modes) > 1:
        modes.remove(0)
    return modes


def stable_seed(*parts: object) -> int:
    """A seed computed from parts, the same on every machine and in every process."""
    text = '\x1f'.join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(errors='surrogateescape'), digest_size=8).digest(), 'big')


def unique_names(paths: Sequence[str]) -> list[str]:
    """Unique file names for relative paths: folders joined by `_`, no extension, a number for equal names.

    Leading folders that all paths share are removed, so a name does not depend on the folder of a corpus.
    """
    parts = [path.split('/') for path in paths]
    while len(parts[0]) > 1 and all(len(part) > 1 and part[0] == parts[0][0] for part in parts):
        parts = [part[1:] for part in parts]
    names: dict[str, None] = {}
    for part in parts:
        joined = '_'.join(part)
        joined = joined.rpartition('.')[0] or joined
        name, number = joined, 1
        while name in names:
            number += 1
            name = f'{joined}_{number}'
        names[name] = None
    return list(names)
