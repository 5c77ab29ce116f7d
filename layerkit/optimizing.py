"""Optimizing a layer's tree: rules propose, proofs decide, debug symbols go, bytecode is added.

What is decided is kept by content. Where nothing built can be run, what was decided on the other architecture for the
same distributions holds for files that are the same there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from layerkit import bytecode, trees
from layerkit.bytecode import Bytecode
from layerkit.deciding import Decision, Lost, Proposals, Shelf, Trial, files_in
from layerkit.interpreters import Interpreter, Unavailable
from layerkit.metadata import top_level_modules
from layerkit.model import ANOTHER_FILE, MIB, SYMBOLS, VERIFY, Layer, Optimized, RuleResult, Target, is_stub, kept_by
from layerkit.oracle import Oracle, modules_in
from layerkit.probing import Bounds, Prober
from layerkit.processes import threads
from layerkit.results import Results, digest_of, fields, texts, texts_by_name, whole_number
from layerkit.rules import Rule, check_modules, check_services, propose, rules_for, stub_path, unused
from layerkit.sharing import Agreed, Own, can_be_stripped, staying
from layerkit.stripping import Stripper
from layerkit.validating import WARN_AT
from layerkit.verifying import Verification

RECIPE = 5
"""Raised whenever the same tree would be optimized otherwise than before."""


_REST_OF_BYTECODE = 10 * MIB
"""Up to which size bytecode is added that the declared imports do not load."""


@dataclass(frozen=True)
class Optimizer:
    """What optimizing is done with: the target's interpreter for proofs, one for bytecode, a strip tool, results."""

    target: Target
    proof: Interpreter | Unavailable
    """Runs what is built; unavailable for a foreign architecture."""
    compiler: Interpreter | None
    """A CPython of the target's version on this machine, whatever its architecture: bytecode has none."""
    stripper: Stripper | None
    results: Results
    jobs: int = 1
    seconds: float = 30.0
    """How long one import may take."""
    verify_seconds: float = 600.0
    """How long one run of a team's own command may take."""

    def identity(self, layer: Layer, kin: Callable[[], str]) -> dict[str, Any]:
        """All that the bytes of an optimized layer depend on, besides what is installed.

        ``kin`` gives what the layer has in common with itself on another architecture: see ``Subject.kin``.
        """
        return {
            "recipe": [RECIPE, bytecode.RECIPE],
            "options": asdict(layer.optimization),
            "imports": list(layer.imports),
            "limit": layer.max_size_mb,
            "proof": self.proof.version if isinstance(self.proof, Interpreter) else "",
            "transferred": self._transferred(kin()) if isinstance(self.proof, Unavailable) else "",
            "compiler": self.compiler.version if self.compiler else "",
            "strip": self.stripper.version if self.stripper else "",
        }

    def transferred(self, kin: str) -> Transfer | None:
        """What was decided on another architecture for the same distributions; None where nothing was."""
        return self.results.read("transfers", _transfer_key(kin), _transfer)

    def _transferred(self, kin: str) -> str:
        record = self.transferred(kin)
        return digest_of(asdict(record) if record else None)

    def transfer(self, kin: str, record: Transfer) -> None:
        """Keep what was decided here, for another architecture."""
        self.results.put("transfers", _transfer_key(kin), asdict(record))


@dataclass(frozen=True)
class Transfer:
    """What one architecture tells others of the same distributions."""

    gone: Mapping[str, str]
    """What goes, path -> SHA-256 of the file; compiled files are left out, since they are others there."""
    restored: Mapping[str, str]
    """What stays of the proposals: path -> the import that needs it."""
    loads: Sequence[str]
    """What the declared imports load, in load order."""


def _transfer(known: Any) -> Transfer:
    gone, restored, loads = fields(known, "gone", "restored", "loads")
    return Transfer(texts_by_name(gone), texts_by_name(restored), texts(loads))


def _transfer_key(kin: str) -> str:
    return digest_of(RECIPE, bytecode.RECIPE, kin)


def _decision(known: Any) -> Decision:
    names = ("restored", "closure", "modules", "late", "failing", "settled")
    restored, closure, modules, late, failing, settled = fields(known, *names)
    if settled is not True:
        raise ValueError("only what is settled is kept")
    return Decision(texts_by_name(restored), texts_by_name(closure), whole_number(modules), texts(late), texts(failing))


@dataclass(frozen=True)
class Subject:
    """A tree to optimize, in place: what its content is known by, and the trees of the layers below."""

    layer: Layer
    tree: Path
    content: str
    """A digest of what was installed and of the layer's own code."""
    folder: Path
    """The layer's own folder, where the team's command runs."""
    kin: str = ""
    """A digest of the distributions by name and version, own code and options, also of the layers below: what two
    architectures have in common when they get the same."""
    below: tuple[Path, ...] = ()
    below_content: tuple[str, ...] = ()
    lost: Lost | None = None
    """What the layers below have let go of."""


def decide(
    subject: Subject,
    optimizer: Optimizer,
    scratch: Path,
    prefix: Path,
    tell: Callable[[str], None] = lambda phase: None,
) -> Decided:
    """Decide what goes from ``subject.tree``, and take it out; ``Decided.finish`` does the rest.

    ``scratch`` is a folder for temporary files on the same disk; ``prefix`` one for bytecode, which the layers of a run
    share. Raises ConfigurationError for a rule or a module that does not exist, CheckFailed when the team's command
    fails on the tree as it is, ExternalError when the interpreter can't be used.
    """
    work = _Work.on(subject, optimizer, scratch, prefix, tell)
    decision, fresh = work.decide()
    gone = frozenset(path for path in work.shelf.proposals.all if not decision.stays(path))
    sizes = {path: (subject.tree / path).lstat().st_size for path in work.shelf.proposals.all}
    transfers = work.transfers(fresh and decision.settled)
    digests = work.digests(gone) if transfers else {}
    before = {found.name: found.version for found in trees.installed(subject.tree)}
    work.shelf.take(gone)
    symbols = None
    if optimizer.stripper and SYMBOLS not in subject.layer.optimization.skip_rules:
        tell("stripping")
        symbols = work.strip(optimizer.stripper)
    # In what order is decided alone as well: it is known for the other architecture before others have been heard.
    loads, settled = work.loads() if transfers or work.adds_bytecode else ([], True)
    if transfers and settled:
        optimizer.transfer(subject.kin, Transfer(digests, {**decision.closure, **decision.restored}, loads))
    return Decided(work, decision, gone, sizes, before, symbols, loads)


@dataclass(frozen=True)
class Decided:
    """What one layer decided alone: what goes is out of its tree, but still at hand."""

    work: _Work
    decision: Decision
    gone: frozenset[str]
    sizes: Mapping[str, int]
    """Bytes of each path that a rule proposed."""
    before: Mapping[str, str]
    """The distributions that were installed, with their versions."""
    symbols: _Symbols | None
    loads: Sequence[str]

    @property
    def own(self) -> Own:
        """What the layers that carry the same distributions have to know of it."""
        return Own(
            stays=staying(self.work.tree, self._stubs(())),
            stubs=self._stubs,
            strips=self.symbols is not None,
            unstripped=frozenset(self.symbols.restored) if self.symbols else frozenset(),
        )

    def _stubs(self, staying: Collection[str]) -> dict[str, str]:
        return self.work.shelf.proposals.stubs(lambda path: path in self.gone and path not in staying)

    def finish(self, agreed: Agreed) -> Optimized:
        """Put back what other layers keep, and make the tree what it is to be."""
        work, optimizer = self.work, self.work.optimizer
        work.shelf.put_back(agreed.files)
        work.shelf.write_stubs(agreed.stubs)
        shutil.rmtree(work.shelf.aside, ignore_errors=True)
        results = [work.result(rule, self.decision, agreed.files, self.sizes) for rule in work.shelf.proposals.rules]
        changed = set(agreed.stubs)
        if self.symbols and optimizer.stripper:
            # It has been loaded where it stays for its own sake.
            back = [path for path in agreed.files if can_be_stripped(path) and path not in agreed.symbols]
            saved = self.symbols.saved | optimizer.stripper.strip(work.tree, back, work.kept, optimizer.jobs)
            results.append(work.leave_symbols(saved, self.symbols.restored, agreed.symbols))
            changed |= saved.keys()
        elif SYMBOLS not in work.subject.layer.optimization.skip_rules:
            why = "there is no strip tool on this machine" if work.oracle else "what is stripped can't be loaded here"
            results.append(RuleResult(SYMBOLS, "skipped", 0, 0, note=why))
        added = work.add_bytecode(self.loads) if work.adds_bytecode else {}
        stubs = {stub_path(path): path for path in self.gone if stub_path(path) in agreed.stubs}
        trees.record_what_is_there(work.tree, changed, stubs, added)
        after = {found.name for found in trees.installed(work.tree)}
        return Optimized(
            rules=tuple(results),
            modules=self.decision.modules,
            unverified=optimizer.proof.reason if isinstance(optimizer.proof, Unavailable) else "",
            late=tuple(self.decision.late),
            failing=tuple(self.decision.failing),
            left_out={name: version for name, version in self.before.items() if name not in after},
            stubs=agreed.stubs,
            bytecode_files=len(added),
            bytecode_size=sum(added.values()),
            interpreter=optimizer.compiler.version if optimizer.compiler and added else "",
            notes=work.notes,
        )


@dataclass(frozen=True)
class _Symbols:
    """Extension modules without their debug symbols: path -> bytes saved; and those that have them back, with why."""

    saved: dict[str, int]
    restored: dict[str, str]


@dataclass
class _Work:
    """One tree on its way."""

    subject: Subject
    optimizer: Optimizer
    oracle: Oracle | None
    shelf: Shelf
    bytecode: Bytecode | None
    scratch: Path
    own: tuple[str, ...]
    """The paths of distributions: the layer's own code is never looked at."""
    record: Transfer | None
    """Where nothing can be run: what was decided on another architecture."""
    notes: tuple[str, ...]
    tell: Callable[[str], None]

    @staticmethod
    def on(subject: Subject, optimizer: Optimizer, scratch: Path, prefix: Path, tell: Callable[[str], None]) -> _Work:
        options = subject.layer.optimization
        rules = rules_for(options)
        installed = trees.installed(subject.tree)
        own = tuple(sorted({path for found in installed for path in found.rows if (subject.tree / path).is_file()}))
        check_services(options.services, own)
        check_modules(options, own)
        paths = files_in(subject.tree)
        proof, record = optimizer.proof, None
        oracle = None
        if isinstance(proof, Interpreter):
            oracle = Oracle(proof, optimizer.target, optimizer.jobs, optimizer.seconds)
        else:
            record = optimizer.transferred(subject.kin)
        # What the layer's own code has a link to is part of it.
        proposed = propose(rules, own, subject.tree, [*options.keep, *sorted(trees.link_targets(subject.tree))])
        if oracle is None and record is None:
            rules = tuple(rule for rule in rules if rule.unproven)
            proposed = {rule.name: tuple(filter(rule.unproven, proposed[rule.name])) for rule in rules}
        proposals = Proposals(subject.layer.name, rules, proposed, frozenset(paths))
        notes = tuple(f"keep: {pattern!r} covers no path of the layer" for pattern in unused(options.keep, paths))
        shelf = Shelf(subject.tree, scratch / "aside", proposals)
        maker = oracle
        if maker is None and optimizer.compiler:
            maker = Oracle(optimizer.compiler, optimizer.target, optimizer.jobs)
        code = Bytecode(subject.tree, prefix, maker, scratch) if maker else None
        return _Work(subject, optimizer, oracle, shelf, code, scratch, own, record, notes, tell)

    @property
    def tree(self) -> Path:
        return self.subject.tree

    # ---- deciding ----

    @property
    def key(self) -> str:
        """What decisions about this tree are kept by: all that they depend on."""
        return digest_of(
            self.subject.content,
            self.subject.below_content,
            self.optimizer.identity(self.subject.layer, lambda: self.subject.kin),
            {name: list(found) for name, found in self.shelf.proposals.paths.items()},
        )

    def decide(self) -> tuple[Decision, bool]:
        """What has to stay of the proposals, and whether that was found out now.

        It is not where the content is the same as in an earlier run, or where nothing can be run.
        """
        if self.oracle is None:
            return self._transferred(), False
        known = self.optimizer.results.read("optimizations", self.key, _decision)
        if known:
            return known, False
        assert self.bytecode is not None  # who has an oracle has a compiler
        for tree in self.subject.below:
            # Of this run they have it; of an earlier one they lie in place with what their budget allowed.
            other = Bytecode(tree, self.bytecode.prefix, self.oracle, self.scratch)
            if not other.folder.is_dir():
                other.make(path for path in files_in(tree) if _is_source(path))
        decision = Trial(
            oracle=self.oracle,
            shelf=self.shelf,
            below=self.subject.below,
            declared=frozenset(self.subject.layer.imports),
            verification=self._verification(self.oracle),
            bytecode=self.bytecode,
            scratch=self.scratch,
            tell=self.tell,
            lost=self.subject.lost,
        ).decide()
        if decision.settled:
            self.optimizer.results.put("optimizations", self.key, asdict(decision))
        return decision, True

    def _verification(self, oracle: Oracle) -> Verification | None:
        command = self.subject.layer.optimization.verify
        if not command:
            return None
        return Verification(
            command,
            self.subject.folder,
            oracle.interpreter,
            self.optimizer.target,
            self.scratch,
            self.optimizer.verify_seconds,
        )

    def _transferred(self) -> Decision:
        """What the other architecture decided, for files that are the same there; all else stays but what is safe."""
        decision = Decision()
        if self.record is None:
            return decision
        safe = self._safe
        for path in self.shelf.proposals.all:
            if path in self.record.restored:
                decision.restored[path] = self.record.restored[path]
            elif path not in safe and self.record.gone.get(path) != _digest(self.tree / path):
                decision.closure[path] = ANOTHER_FILE
        return decision

    @property
    def _safe(self) -> frozenset[str]:
        """What of the proposals needs no proof."""
        proposals = self.shelf.proposals
        return frozenset(
            path
            for rule in proposals.rules
            if rule.unproven
            for path in filter(rule.unproven, proposals.paths[rule.name])
        )

    def transfers(self, fresh: bool) -> bool:
        """Whether the other architecture is to be told: of every fresh proof, and where it does not know an old one."""
        if self.oracle is None or not self.subject.kin:
            return False
        return fresh or self.optimizer.transferred(self.subject.kin) is None

    def digests(self, gone: Iterable[str]) -> dict[str, str]:
        """Path -> SHA-256 of what goes, but for compiled files, which are others on another architecture."""
        return {path: _digest(self.tree / path) for path in gone if not path.endswith(".so")}

    def result(self, rule: Rule, decision: Decision, shared: Mapping[str, str], sizes: Mapping[str, int]) -> RuleResult:
        """What became of a rule; ``shared`` is what stays for the sake of another layer, path -> its name."""
        proposed = self.shelf.proposals.paths[rule.name]
        why = {**{path: kept_by(name) for path, name in shared.items()}, **decision.closure, **decision.restored}
        restored = {path: why[path] for path in proposed if path in why}
        gone = tuple(path for path in proposed if path not in why)
        needed = [path for path in proposed if path in decision.restored or path in shared]
        note = ""
        if not proposed:
            outcome, note = "nothing", rule.why_nothing(self.tree)
        elif self.oracle:
            outcome = ("narrowed" if gone else "rejected") if needed else "verified"
        else:
            outcome = "unproven" if self._safe.issuperset(gone) and not restored else "transferred"
            note = f"{len(restored)} of {len(proposed)} stay" if restored else ""
        return RuleResult(rule.name, outcome, len(gone), sum(sizes[path] for path in gone), restored, note, gone)

    # ---- debug symbols ----

    @property
    def kept(self) -> Path:
        """Where extension modules lie as they were before they were stripped."""
        return self.scratch / "unstripped"

    def strip(self, stripper: Stripper) -> _Symbols:
        """Take debug symbols out of extension modules, and load each once; one that then fails gets them back."""
        libraries = [path for path in self.own if can_be_stripped(path) and (self.tree / path).is_file()]
        saved = stripper.strip(self.tree, libraries, self.kept, self.optimizer.jobs)
        known = self.optimizer.results.read("stripped", self.key, texts_by_name)
        restored = known or {}
        if self.oracle and saved and known is None:
            restored = self._unloadable(self.oracle, saved, self.kept)
            self.optimizer.results.put("stripped", self.key, restored)
        self._unstrip(saved, restored)
        return _Symbols(saved, restored)

    def _unstrip(self, saved: dict[str, int], paths: Iterable[str]) -> None:
        for path in paths:
            if saved.pop(path, 0):
                os.replace(self.kept / path, self.tree / path)

    def leave_symbols(
        self, saved: dict[str, int], restored: Mapping[str, str], shared: Mapping[str, str]
    ) -> RuleResult:
        """Give back the symbols that other layers keep (``shared``, path -> layer); what became of the rule."""
        self._unstrip(saved, shared)
        shutil.rmtree(self.kept, ignore_errors=True)
        why = {**{path: kept_by(name) for path, name in shared.items()}, **restored}
        outcome = "verified" if saved else "nothing"
        if why:
            outcome = "narrowed" if saved else "rejected"
        return RuleResult(SYMBOLS, outcome, len(saved), sum(saved.values()), why, removed=tuple(sorted(saved)))

    def _unloadable(self, oracle: Oracle, stripped: Iterable[str], kept: Path) -> dict[str, str]:
        """Of stripped files, those that no longer load though they did, path -> module; all, when the team's command
        no longer passes."""
        modules = modules_in(stripped)
        found = {
            modules[name]: name
            for name, outcome in self._sweep(oracle, modules).items()
            if not outcome.ok and not self._loads_unstripped(oracle, name, modules[name], kept)
        }
        verification = self._verification(oracle)
        if verification and verification.run(self.tree, self.subject.below):
            found = dict.fromkeys(stripped, VERIFY)
        return found

    def _loads_unstripped(self, oracle: Oracle, name: str, path: str, kept: Path) -> bool:
        """Whether a module that fails stripped fails unstripped too, so that stripping is not the reason."""
        stripped = (self.tree / path).read_bytes()
        (self.tree / path).write_bytes((kept / path).read_bytes())
        same = not self._sweep(oracle, [name])[name].ok
        (self.tree / path).write_bytes(stripped)
        return same

    def _sweep(self, oracle: Oracle, modules: Iterable[str]) -> Any:
        prefix = self.bytecode.prefix if self.bytecode else None
        return oracle.sweep(self.tree, self.subject.below, modules, self.scratch, bytecode=prefix)

    # ---- bytecode ----

    @property
    def adds_bytecode(self) -> bool:
        return self.bytecode is not None and self.subject.layer.optimization.bytecode != "off"

    def loads(self) -> tuple[Sequence[str], bool]:
        """What the declared imports load of the tree, in load order, and whether another run would find the same.

        Nothing is known where nothing can be run.
        """
        if self.oracle is None:
            return (self.record.loads if self.record else []), True
        known = self.optimizer.results.read("loads", self.key, texts)
        if known is not None:
            return known, True
        stubs = self.shelf.proposals.stubs(self.shelf.is_out)
        top = [module for module in top_level_modules(self.tree) if not is_stub(module, stubs)]
        declared = self.subject.layer.imports or top
        prefix = None
        if self.bytecode and self.adds_bytecode:
            # So that what the imports load is found compiled.
            self.bytecode.make(path for path in files_in(self.tree) if _is_source(path))
            prefix = self.bytecode.prefix
        oracle, tree, below = self.oracle, self.tree, self.subject.below
        with threads(oracle.jobs) as pool:
            answers = list(pool.map(lambda module: oracle.loads(tree, below, [module], prefix), declared))
        found = list(dict.fromkeys(path for loaded in answers for path in loaded))
        silent = [module for module, loaded in zip(declared, answers, strict=True) if not loaded]
        settled = self._fail_for_certain(oracle, silent)
        if settled:
            self.optimizer.results.put("loads", self.key, found)
        return found, settled

    def _fail_for_certain(self, oracle: Oracle, modules: Sequence[str]) -> bool:
        """Whether modules that loaded nothing would do so again: not where the machine was too busy for them."""
        there = modules_in(files_in(self.tree))
        prober = Prober(oracle.interpreter, Bounds(oracle.seconds, oracle.memory))
        path = [*self.subject.below, self.tree]
        outcomes = prober.imports([(module, path) for module in modules if module in there], oracle.target, oracle.jobs)
        return all(outcome.failure and not outcome.failure.unsettled for outcome in outcomes)

    def add_bytecode(self, first: Iterable[str]) -> dict[str, int]:
        """Put bytecode beside its source, ``first`` first; path -> bytes of each that was added."""
        assert self.bytecode is not None  # asked by adds_bytecode
        self.tell("compiling")
        options = self.subject.layer.optimization
        paths = files_in(self.tree)
        sources = [path for path in paths if _is_source(path)]
        total = sum((self.tree / path).lstat().st_size for path in paths)
        # A mebibyte stays free, for what RECORD says of the bytecode and for the next version of something.
        room = self.subject.layer.max_size - total - MIB
        if options.bytecode == "all":
            return self.bytecode.add(sources, first, room, room)
        # What nothing declared loads is not worth the warning that the layer is close to its limit.
        rest = int(WARN_AT * self.subject.layer.max_size) - total - MIB
        if options.bytecode_budget_mb:
            room = min(room, options.bytecode_budget_mb * MIB)
            return self.bytecode.add(sources, first, min(room, rest), room)
        return self.bytecode.add(sources, first, min(_REST_OF_BYTECODE, rest), room)


def _is_source(path: str) -> bool:
    return path.endswith(".py") and path.split("/")[0] != "bin"


def _digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()


def optimizer_for(
    target: Target, proof: Interpreter | Unavailable, compiler: Interpreter | None, results: Results, jobs: int
) -> Optimizer:
    """What this machine has to optimize layers for ``target`` with."""
    # What strip makes is only believed when it has been loaded.
    stripper = Stripper.find() if isinstance(proof, Interpreter) else None
    return Optimizer(target, proof, compiler, stripper, results, jobs)
