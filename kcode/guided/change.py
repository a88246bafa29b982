"""A change that the driver of failing tests cannot make: the model chooses a place that exists and writes its text.

kcode makes the edit and judges it: by the project's tests, which must be as green as before, by the syntax, and by the names that
the new code uses. What did not hold is taken back before the next try, and so is what nothing has judged when the turn ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kcode.guided.choice import choose, decide
from kcode.guided.edits import CannotEdit, Edit
from kcode.guided.goal import Goal
from kcode.guided.places import Lines, Place, Renaming, Rewrite, find_places, whole_text
from kcode.guided.relevance import relevant, seed_text
from kcode.guided.surprise import squeezed
from kcode.guided.suspects import words_of
from kcode.guided.trial import accepted, can_judge, clean, run_tests, timeout_after, unknown_names, worsening
from kcode.model import Sampling
from kcode.repomap import TEST_PATH, SourceFile, load_sources
from kcode.steps import Steps
from kcode.tools.syntax import MAX_PARSED_BYTES, describe_faults, introduced_faults, language_of
from kcode.tools.testing.report import TestReport
from kcode.turn import Ask, Ending
from kcode_prompts.prompt import load
from kcode_sandbox.errors import FileError
from kcode_sandbox.sandbox import Sandbox

MAX_EDITS = 3
MAX_TRIES = 4
ANSWER_TOKENS = 1500
TEMPERATURES = (0.0, 0.4, 0.7, 1.0)
NOTHING_MORE = "nothing more"
NEXT_EDIT = "Which edit does the request need next?"
MAX_LISTED = 24
MAX_TEXT_BYTES = 64 << 10
MAX_TEXTS = 3
SHOWN_CHARS = 5000
SHOWN_CODE_CHARS = 1500
FAILING_CHARS = 1200


def next_question(files: Sequence[SourceFile], task: str, done: Sequence[str]) -> str:
    """A text of examples that the label of the next edit completes."""
    names: dict[str, list[str]] = {}
    for place in relevant(files, task)[:MAX_LISTED]:
        names.setdefault(place.path, []).append(place.symbol.qualified)
    code = ", ".join(f"{path} ({', '.join(found)})" for path, found in names.items())
    one_line = " ".join(task.split())
    return load("guided/place", code=code or "none", task=one_line, done=", ".join(done) or "nothing")


def is_rewrite_of(place: Place, names: frozenset[str]) -> bool:
    return isinstance(place, Rewrite) and place.suspect.symbol.name in names


@dataclass(slots=True)
class Change:
    """One request to change something; use it once. `first` is what the tests said of the tree as it is.

    With a `goal` failing tests are what the request is about: it is done when that is met, else everything is taken back. `named`
    are functions and classes that it is surely about: the first edit is made there.
    """

    steps: Steps
    sandbox: Sandbox
    seed: int
    task: str
    first: TestReport | None
    goal: Goal | None = None
    named: frozenset[str] = frozenset()
    tries: int = 0
    done: list[Edit] = field(default_factory=list[Edit])
    _labels: list[str] = field(default_factory=list[str])

    async def carry_out(self) -> Ending:
        start = kept = await self.steps.snapshot()
        before = self.first
        problem = "no place for the change was found"
        if self.named:
            problem = f"{', '.join(sorted(self.named))} cannot be written anew in one piece"
        settled = False
        try:
            files = await load_sources(self.sandbox, words_of(self.task))
            self._brief(files)
            while len(self.done) < MAX_EDITS and not self._is_met(before):
                place = await self._choose(files)
                if place is None:
                    problem = "" if self.done else problem
                    break
                problem, before = await self._edit(place, kept, before)
                if problem:
                    break
                kept = await self.steps.snapshot()
                files = await load_sources(self.sandbox, words_of(self.task))
            settled = self.goal is None or self._is_met(before)
            return self._ending(problem, before, files, is_done=settled and bool(self.done))
        finally:
            if not settled:
                # An interrupt or a limit may come while a try is being judged.
                await clean(self.steps, start if self.goal is not None else kept)

    def _is_met(self, report: TestReport | None) -> bool:
        return self.goal is not None and report is not None and self.goal.met(report)

    def _brief(self, files: Sequence[SourceFile]) -> None:
        task = self.task
        if self.goal is not None:
            task += f"\n\nFailing tests:\n{self.goal.essential.text(FAILING_CHARS)}"
        told = "\n\n".join(message.text for message in self.steps.messages)
        self.steps.say(load("guided/request", files=seed_text(files, self.task, told, SHOWN_CHARS), task=task))

    async def _choose(self, files: Sequence[SourceFile]) -> Place | None:
        """The place the model wants; after an edit, one of those that the request names as well, or none."""
        known = {stat.path for stat in await self.sandbox.list_files(".")}
        found = find_places(files, await self._texts(known), known, self.task)
        places = {place.label: place for place in reversed(found) if place.label not in self._labels}
        options = list(dict.fromkeys(place.label for place in found if place.label in places))
        if self.done:
            options = [NOTHING_MORE, *(label for label in options if self._is_named(places[label]))]
        elif self.named:
            # Another function is not what the message is about, and nothing would judge a change of it.
            options = [label for label in options if is_rewrite_of(places[label], self.named)]
        if not options:
            return None
        examples = next_question(files, self.task, self._labels)
        listed = "\n".join(options)
        question = load("guided/choose", question=NEXT_EDIT, alternatives=listed)
        place = places.get(await decide(self.steps, examples, question, options, self.seed))
        if place is not None:
            self._labels.append(place.label)
            self.steps.notice("info", f"decided: {place.label}")
        return place

    def _is_named(self, place: Place) -> bool:
        """Whether the request may mean this place too: another function that it names, when it was not for something new."""
        if self.goal is not None:
            return True
        if not isinstance(place, Rewrite) or not self._labels[-1].startswith("rewrite "):
            return False
        return place.suspect.symbol.kind != "class" and place.suspect.symbol.name in words_of(self.task)

    async def _texts(self, known: set[str]) -> list[Lines]:
        """Short files without a grammar that the request names."""
        mentioned = words_of(self.task)
        paths = [path for path in sorted(known) if language_of(path) is None and mentioned & {path, path.rpartition("/")[2]}]
        return [place for path in paths[:MAX_TEXTS] if (place := whole_text(path, await self._text_of(path))) is not None]

    async def _text_of(self, path: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
        """ "" for a file that is not there, is longer, or is no text."""
        try:
            found = await self.sandbox.read(path, max_bytes=max_bytes)
        except FileError:
            return ""
        data = found.data
        return "" if b"\0" in data or found.stat.size > max_bytes else data.decode(errors="replace").replace("\r\n", "\n")

    async def _edit(self, place: Place, kept: str, before: TestReport | None) -> tuple[str, TestReport | None]:
        """Try to edit there until one version holds: why none did ("" when one did), and what the tests now say."""
        problem = code = ""
        for number in range(MAX_TRIES):
            code = await self._write(place, number, code, problem)
            self.steps.take_steering()
            try:
                if not code.strip() and not isinstance(place, Renaming):
                    raise CannotEdit("nothing was written, or the answer reached its length limit")
                edit = place.edit(code)
            except CannotEdit as error:
                problem = str(error)
                self.steps.notice("info", f"not tried: {problem.splitlines()[0]}")
                continue
            mark = self.steps.mark()
            problem, after = await self._judge(edit, before)
            if not problem:
                self.done.append(edit)
                return "", after
            self.steps.notice("info", f"taken back: {problem.splitlines()[0]}")
            await clean(self.steps, kept)
            self.steps.rewind(mark)
        return problem, before

    async def _write(self, place: Place, number: int, code: str, problem: str) -> str:
        """The `number`th version (from 0) of the text for the place, written in view of the one before."""
        question = place.question
        if isinstance(place, Renaming):
            names = place.names(self.task)
            return await choose(self.steps, question, names, self.seed) if names and not number else ""
        if problem:
            question = load("guided/retry", question=question, code=code[:SHOWN_CODE_CHARS], problem=problem)
        language = language_of(place.path)
        # A text file may hold code blocks of its own.
        fence = "```" if language else "````"
        sampling = Sampling(
            temperature=TEMPERATURES[min(number, len(TEMPERATURES) - 1)],
            top_p=0.95,
            seed=self.seed + number,
            max_tokens=ANSWER_TOKENS,
        )
        prefix = f"{fence}{language or ''}\n{place.opening}"
        mark = self.steps.mark()
        how = Ask(prefix=prefix, stop=("\n" + fence,), sampling=sampling, offer_tools=False)
        answer = await self.steps.ask(how, say=question)
        self.steps.rewind(mark)
        return "" if answer.finish == "length" else answer.message.text.partition("\n")[2].split("\n" + fence)[0].rstrip()

    async def _judge(self, edit: Edit, before: TestReport | None) -> tuple[str, TestReport | None]:
        """Make the edit; what is wrong with it ("" for nothing) and what the tests say."""
        paths = dict.fromkeys(str(call.arguments["path"]) for call in edit.calls)
        texts = {path: await self._text_of(path, MAX_PARSED_BYTES) for path in paths}
        self.tries += 1
        for call in edit.calls:
            called = accepted(await self.steps.run(call.tool, call.arguments))
            if called.result.is_error:
                return called.result.text, before
        now = {path: await self._text_of(path, MAX_PARSED_BYTES) for path in paths}
        if all(squeezed(now[path]) == squeezed(old) for path, old in texts.items()):
            return "only blank lines are different from before", before
        for path, old in texts.items():
            new = now[path]
            if wrong := introduced_faults(path, old, new):
                return f"{path} has syntax errors now:\n{describe_faults(wrong)}", before
            if unknown := unknown_names(path, old, new):
                return f"{', '.join(unknown)}: used, but not defined in {path}", before
        if before is None or not can_judge(before):
            return "", before
        after = await run_tests(self.steps, timeout_after(self.first), recorded=True)
        problem = worsening(before, after)
        if (
            not problem
            and self.goal is not None
            and after is not None
            and not self._is_met(after)
            and after.failed + after.errors >= before.failed + before.errors
        ):
            problem = after.text(FAILING_CHARS)
        return problem, after

    def _ending(self, problem: str, after: TestReport | None, files: Sequence[SourceFile], *, is_done: bool) -> Ending:
        first = problem.split("\n")[0]
        attempts = max(self.tries, 1)
        if self.goal is not None and not is_done:
            reason = f"{self.tries} changes were tried and none made the tests pass; the files are as they were"
            counts = self.first.counts if self.first is not None else "unknown"
            return Ending("limit", reason, f"Not fixed: {reason}. Still failing: {counts}.", attempts)
        if not self.done:
            reason = f"the files are as they were: {first}"
            return Ending("limit", reason, f"Not done: {reason}", attempts)
        result = " ".join(edit.done for edit in self.done) + " " + self._verdict(after, files)
        if problem:
            return Ending("limit", f"only a part was done: {first}", f"{result} The rest was not done: {first}", attempts)
        return Ending("finished", "the change was made", result, attempts)

    def _verdict(self, after: TestReport | None, files: Sequence[SourceFile]) -> str:
        """How the change was judged, for the person."""
        if self.first is None or after is None or not can_judge(self.first):
            return "No test has judged it: the project has none that run. Only its syntax was checked."
        names = [name.rpartition(".")[2] for edit in self.done for name in edit.names]
        tested = {word for file in files if TEST_PATH.search(file.path) for word in file.words}
        text = f"Tests: {self.first.counts} before, {after.counts} now."
        untested = [name for name in dict.fromkeys(names) if name not in tested]
        return text + (f" No test mentions {', '.join(untested)}." if untested else "")
