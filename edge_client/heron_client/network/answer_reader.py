"""The answer to an upload as it arrives: scalars first, then the tensors that were asked for; nothing else, nothing more, nothing twice."""

from __future__ import annotations

import dataclasses

from heron_common.errors import RefusedError, TransportError
from heron_common.numerics.tensors import TensorSpec, total_bytes
from heron_common.protocol.chunks import StreamReceiver
from heron_common.protocol.messages import UploadAnswer


class AnswerReader:
    """Takes the parts of one answer in their order; holds at most the bytes that the plan asks for."""

    def __init__(self, tensors: tuple[TensorSpec, ...], num_probe_losses: int) -> None:
        """`tensors` follow the scalars; of losses of probes there are none or `num_probe_losses`."""
        self._num_probe_losses = num_probe_losses
        self._answer: UploadAnswer | None = None
        self._receiver = StreamReceiver(tensors)
        self._data = bytearray()
        self._size = total_bytes(tensors)
        self._complete = not tensors

    def answer(self, answer: UploadAnswer) -> None:
        """Take the scalars.

        Raises:
            TransportError: they came before, or are not as many as there are samples.

        """
        if self._answer is not None:
            raise TransportError("the answer to an upload has its scalars once, but more came")
        if len(answer.probe_losses) not in (0, self._num_probe_losses):
            raise TransportError(
                f"the answer to an upload has {self._num_probe_losses} losses of probes, but {len(answer.probe_losses)} came"
            )
        self._answer = answer

    def chunk(self, tensor_index: int, data: bytes) -> str:
        """Take a piece of a tensor and return the tensor's name.

        Raises:
            TransportError: it was not announced, is empty, too large or out of order.

        """
        if not data:
            # They could come for ever.
            raise TransportError("the answer to an upload cannot be read: a chunk of no bytes came")
        try:
            spec = self._receiver.check_chunk(tensor_index, data)
        except RefusedError as exc:
            raise TransportError(f"the answer to an upload cannot be read: {exc}") from exc
        self._data += data
        return spec.name

    def trailer(self, length_bytes: int, sha256: bytes) -> None:
        """Take the end of the tensors; whether they are whole is said by `whole`."""
        try:
            self._receiver.check_trailer(length_bytes, sha256)
        except RefusedError as exc:
            raise TransportError(f"the answer to an upload cannot be read: {exc}") from exc
        self._complete = True

    def whole(self) -> UploadAnswer:
        """Return the answer.

        Raises:
            TransportError: something is missing.

        """
        if self._answer is None or not self._complete:
            raise TransportError("the server closed the upload without a whole answer")
        return dataclasses.replace(self._answer, cut_gradient=self._data)
