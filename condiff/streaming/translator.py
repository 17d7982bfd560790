"""Pictures in, pictures out: what is around a stream of latents."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condiff.codecs import Codec, Identity
from condiff.conditions import Conditions
from condiff.data.picture import Framing, to_array, to_mode
from condiff.data.sequence import scaled
from condiff.errors import BadType, BadValue, require_extra
from condiff.streaming.batch import Stream
from condiff.streaming.similarity import SimilarityFilter

Picture = Any  # a Pillow image, an array (H, W, C) of bytes, or a tensor (C, H, W) in [-1, 1]


class Translator:
    """Frames of a camera or a file -> pictures, through a codec, a filter of still frames, and a stream.

    Args:
        stream: of one frame a tick.
        codec: between pictures and latents; none by default.
        shape: of a picture (C, H, W); other sizes are cropped in the middle and resized.
        still: which frames aren't worked on; none by default. After :meth:`start` and :meth:`tell` so many are,
            whatever it says, as it takes for a picture that is all new.

    Raises:
        BadValue: a stream of several frames a tick, a shape that the codec doesn't take.

    Example:
        >>> translator = streamdiffusion.of_pipeline(pipe, steps=(32, 45)).start("a fox in the snow", seed=0)
        >>> for picture in translator.clip(frames):
        ...     show(picture)
    """

    def __init__(
        self,
        stream: Stream,
        codec: Codec | None = None,
        *,
        shape: tuple[int, ...],
        still: SimilarityFilter | None = None,
    ) -> None:
        if stream.frames != 1:
            raise BadValue(f"a translator takes frames one by one, its stream takes {stream.frames} a tick")
        self.stream, self.codec, self.shape, self.still = stream, codec or Identity(), tuple(shape), still
        latent = self.codec.latent_shape(self.shape)
        if tuple(latent) != tuple(stream.shape):
            raise BadValue(f"pictures {self.shape} have latents {tuple(latent)}, and the stream takes {stream.shape}")
        self._framing = Framing(size=(self.shape[-2], self.shape[-1]), channels=self.shape[0])
        self._previous: Tensor | None = None
        self._owed = 0  # frames that are worked on even if they are still
        self.encode: Any = None

    @property
    def delay(self) -> int:
        """Frames that are worked on between a frame and its picture."""
        return self.stream.delay

    def start(self, cond: Mapping[str, Any] | Conditions | str | None = None, seed: int = 0) -> Translator:
        """Begin anew: the noises from the seed, what all frames are told from ``cond``, or a prompt."""
        self.stream.start(self._told(cond), rng=seed)
        if self.still is not None:
            self.still.start()
        self._previous, self._owed = None, self.delay + 1
        return self

    def tell(self, cond: Mapping[str, Any] | Conditions | str | None) -> None:
        """Another prompt, or other conditions, from the next frame on."""
        self.stream.tell(self._told(cond))
        self._owed = self.delay + 1

    def _told(self, cond: Any) -> Any:
        if not isinstance(cond, str):
            return cond
        if self.encode is None:
            raise BadType(f"this model is told no prompt, got {cond!r}: give its conditions")
        return self.encode([cond])

    def __call__(self, frame: Picture) -> Tensor | None:
        """The picture that is ready when this frame has come in, (C, H, W); None while the first ones are on their way.

        For a still frame the previous one again.
        """
        x = self.read(frame)
        if not self._changed(x) and not self._owed:
            return self._previous
        self._owed = max(0, self._owed - 1)
        return self._worked(x)

    def _changed(self, x: Tensor) -> bool:
        return self.still is None or self.still(x)

    def clip(self, frames: Iterable[Picture]) -> Iterator[Tensor]:
        """One picture for every frame, in their order and none late: those on their way at the end are waited for.

        A still frame has the picture of the last one that was worked on.
        """
        on_their_way = min(self.stream.ticks, self.delay)  # frames of before, whose pictures aren't this clip's
        waiting = deque([0] * on_their_way)  # how many frames each picture stands for
        for frame in frames:
            x = self.read(frame)
            if self._changed(x) or self._owed:
                self._owed = 0  # its own picture is waited for
                waiting.append(1)
                made = self._worked(x)
                yield from [] if made is None else [made] * waiting.popleft()
            elif waiting:
                waiting[-1] += 1
            else:
                assert self._previous is not None  # without one no frame is still
                yield self._previous
        for z in self.stream.drain():
            self._previous = self._decoded(z)
            yield from [self._previous] * waiting.popleft()

    def _worked(self, x: Tensor) -> Tensor | None:
        with torch.no_grad():
            z = self.stream.push(self.codec.encode(x[None]))
        if z is not None:
            self._previous = self._decoded(z)
        return self._previous

    @torch.no_grad()
    def _decoded(self, z: Tensor) -> Tensor:
        return self.codec.decode(z)[0].float().clamp(-1.0, 1.0)

    def read(self, frame: Picture) -> Tensor:
        """A frame as the model sees it: (C, H, W) in [-1, 1].

        Raises:
            BadType: neither an image, an array of bytes nor a tensor. BadValue: a tensor of another shape or range;
                before :meth:`start`.
        """
        self.stream.check_started()
        device = self.stream.noise.device
        if isinstance(frame, Tensor):
            if tuple(frame.shape) != self.shape or not float(frame.abs().amax()) <= 1.0:
                raise BadValue(f"tensors of frames are {self.shape} in [-1, 1], got {tuple(frame.shape)}")
            return frame.to(device=device, dtype=self.stream.dtype)
        if isinstance(frame, np.ndarray):
            frame = _image(frame)
        if not hasattr(frame, "convert"):
            raise BadType(f"frames are Pillow images, arrays of bytes or tensors, got {type(frame).__name__}")
        array = to_array(to_mode(frame, self._framing, "a frame"), self._framing)
        return scaled(array).to(device=device, dtype=self.stream.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """Of stream and filter, and the last picture."""
        parts = {"stream": self.stream, **({"still": self.still} if self.still is not None else {})}
        state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
        state["owed"] = torch.tensor(self._owed)
        return state if self._previous is None else {**state, "previous": self._previous}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state_dict`; after :meth:`start`."""
        for name, part in (("stream", self.stream), ("still", self.still)):
            if part is not None:
                part.load_state_dict({k[len(name) + 1 :]: v for k, v in state.items() if k.startswith(name + ".")})
        self._previous, self._owed = state.get("previous"), int(state["owed"])


def _image(frame: np.ndarray) -> Any:
    if frame.dtype != np.uint8 or frame.ndim not in (2, 3):
        raise BadType(f"arrays of frames hold bytes, (H, W) or (H, W, 3), got {frame.dtype} {frame.shape}")
    return require_extra("PIL.Image", "data").fromarray(frame)
