"""The prompt: editing, history and completion by prompt_toolkit, on a line that may be slow, noisy or gone.

prompt_toolkit reads from a pipe that this module fills: every byte has passed the line's flood gate, and the end of the line,
idleness and noise end the prompt as exceptions of `line`. A terminal that knows no cursor gets `Line.read_line`.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.data_structures import Size
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input.base import PipeInput
from prompt_toolkit.input.posix_pipe import PosixPipeInput
from prompt_toolkit.output.color_depth import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

from controller import disk
from controller.console.line import MAX_LINE, Cancelled, Gone, Idle, Line, LoggedOut, Noise
from controller.process import say

WATCH_S = 0.5
KEEP_LINES = 200
ENDS = b"\r\n\x03\x04"
SETTLE_S = 0.03  # for the prompt to end by such a key


class _Words(Completer):
    """Candidates for the word under the cursor from a function of the words before it."""

    def __init__(self, candidates: Callable[[str], Iterable[str]]) -> None:
        self.candidates = candidates

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        before, _, word = text.rpartition(" ")
        fitting = [found for found in self.candidates(before) if found.startswith(word.lower())]
        for found in fitting:
            yield Completion(found + " " if len(fitting) == 1 else found, -len(word), display=found)


class _Bytes(io.RawIOBase):
    """What prompt_toolkit writes, onto the line. It draws from callbacks that nobody awaits: an error raised there would end
    nothing, so it is kept for whoever watches, and what is drawn afterwards goes nowhere.
    """

    def __init__(self, line: Line) -> None:
        self.line = line
        self.gone: Gone | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.gone is None:
            try:
                self.line.write_bytes(bytes(data))
            except Gone as e:
                self.gone = e
        return len(data)


class _Out:
    """The text stream that Vt100_Output wants."""

    errors = "replace"

    def __init__(self, line: Line) -> None:
        self.line, self.buffer = line, _Bytes(line)
        self.encoding = "utf-8" if line.utf8 else "ascii"

    def write(self, text: str) -> int:
        self.buffer.write(text.encode(self.encoding, "replace"))
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""

    def isatty(self) -> bool:
        return True


class _Vt100(Vt100_Output):
    """Without the modes that a VT100 does not know: every byte counts on a slow line."""

    def enable_bracketed_paste(self) -> None:
        """A pasted line end is a line end."""

    def disable_bracketed_paste(self) -> None:
        """It never was."""

    def reset_cursor_key_mode(self) -> None:
        """Both modes of the arrow keys are understood."""


class _History(InMemoryHistory):
    """Without the lines that are not to be kept."""

    def __init__(self, lines: Iterable[str], keeps: Callable[[str], bool]) -> None:
        super().__init__([line for line in lines if keeps(line)])
        self.keeps = keeps

    def append_string(self, string: str) -> None:
        if self.keeps(string):
            super().append_string(string)


class Prompt:
    """The prompt of one session. `history`: a file of the user's, the newest 200 lines that `keeps` lets in; a disk that keeps none
    is no error. `news`: what a person should hear at once, above the line that they are typing.
    """

    def __init__(
        self,
        line: Line,
        candidates: Callable[[str], Iterable[str]],
        history: Path | None,
        news: Callable[[], Iterable[str]] = tuple,
        keeps: Callable[[str], bool] = bool,
    ) -> None:
        self.line, self._file, self._news = line, history, news
        self._history = _History(_read_history(history), keeps)
        self._candidates = candidates

    def read(self, text: str) -> str:
        """One line. Raises Gone, Idle, Noise, Cancelled, LoggedOut."""
        got = asyncio.run(self._ask(text)) if self.line.vt else self.line.read_line(text)
        got = got.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # prompt_toolkit keeps what is no UTF-8
        if got.strip() and got.isprintable():
            if not self.line.vt:
                self._history.append_string(got)
            self._write_history()
        return got

    def _session(self, text: str, pipe: PipeInput, stream: _Out) -> PromptSession[str]:
        """prompt_toolkit's part: what it reads from, draws on, completes and remembers."""
        line = self.line
        out = _Vt100(
            stream,  # type: ignore[arg-type]
            lambda: Size(rows=line.height, columns=line.width),
            term="vt100",
            default_color_depth=ColorDepth.DEPTH_1_BIT,
            enable_cpr=False,
        )
        session: PromptSession[str] = PromptSession(
            ANSI(text),
            input=pipe,
            output=out,
            completer=_Words(self._candidates),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            history=self._history,
            enable_suspend=False,
            enable_open_in_editor=False,
            mouse_support=False,
            reserve_space_for_menu=0,
        )
        session.default_buffer.on_text_changed += _clip
        return session

    async def _ask(self, text: str) -> str:
        line = self.line
        with PosixPipeInput.create() as pipe:
            stream = _Out(line)
            session = self._session(text, pipe, stream)
            loop = asyncio.get_running_loop()

            def end(e: Exception) -> None:
                loop.remove_reader(line.wire.fd_in)
                if session.app.is_running and not session.app.is_done:
                    session.app.exit(exception=e)

            def failed(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
                """A fault of ours in a callback: this prompt ends by it, and says so, instead of standing there deaf."""
                say("console", f"at the prompt: {context.get('exception') or context.get('message')!r}")
                end(RuntimeError(f"the prompt failed: {context.get('message')}"))

            def pump() -> None:
                try:
                    data = line.read(0)
                except (Gone, Idle, Noise) as e:
                    end(e)
                    return
                # What comes after the key that ends a line belongs to the next reader, which may be another one than this prompt.
                at = next((i + 1 for i, byte in enumerate(data) if byte in ENDS), 0)
                if at:
                    line.unread(data[at:])
                    loop.remove_reader(line.wire.fd_in)
                    loop.call_later(SETTLE_S, go_on)
                if data:
                    pipe.send_bytes(data[:at] if at else data)

            def go_on() -> None:
                """It did not end the line after all: Enter in a search, Ctrl-D on a word."""
                if session.app.is_running and not session.app.is_done:
                    loop.add_reader(line.wire.fd_in, pump)
                    pump()

            async def watch() -> None:
                while True:
                    await asyncio.sleep(WATCH_S)
                    try:
                        if stream.buffer.gone is not None:
                            raise stream.buffer.gone
                        line.look()
                        if texts := list(self._news()):
                            await run_in_terminal(lambda texts=texts: line.write("".join(f"{text}\n" for text in texts)))  # type: ignore[misc]
                    except (Gone, Idle, LoggedOut) as e:
                        end(e)
                        return
                    except Exception as e:  # whoever watches idleness and carrier must not fall silent
                        say("console", f"{type(e).__name__}: {e}")
                        end(Gone(f"{type(e).__name__} while waiting"))
                        return

            loop.set_exception_handler(failed)
            watching: list[asyncio.Task[None]] = []

            def begin() -> None:
                loop.add_reader(line.wire.fd_in, pump)
                watching.append(asyncio.ensure_future(watch()))
                loop.call_soon(pump)

            try:
                # Its own handler of errors would print on this process's terminal and wait there for Enter.
                got = await session.prompt_async(pre_run=begin, handle_sigint=False, set_exception_handler=False)
                if stream.buffer.gone is not None:
                    raise stream.buffer.gone
                return str(got)
            except KeyboardInterrupt:
                raise Cancelled from None
            except EOFError:
                raise LoggedOut from None
            finally:
                loop.remove_reader(line.wire.fd_in)
                for task in watching:
                    task.cancel()

    def _write_history(self) -> None:
        if self._file is None:
            return
        lines = [line for line in self._history.get_strings() if line.isprintable()][-KEEP_LINES:]
        try:
            disk.replace(self._file, ("\n".join(lines) + "\n").encode(), durable=False)
        except (OSError, ValueError):
            self._file = None  # said nowhere: what is lost is a convenience


def _clip(buffer: Buffer) -> None:
    """No command is longer; noise must not grow a buffer."""
    if len(buffer.text) > MAX_LINE:
        buffer.document = Document(buffer.text[:MAX_LINE], min(buffer.cursor_position, MAX_LINE))


def _read_history(path: Path | None) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()[-KEEP_LINES:] if path is not None else []
    except OSError:
        return []
