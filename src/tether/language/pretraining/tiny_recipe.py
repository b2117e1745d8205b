"""The recipe of ``tiny``, the language model that comes with the package.

A byte-level BPE tokenizer and a small Llama, both learned from nothing but the train split of the
reviews, on a laptop's processor::

    python -m tether.language.pretraining --out runs/tiny
    python -m tether.language.pretraining --export runs/tiny src/tether/language/tiny

The first line goes on where it stopped when it is given again; the second works meanwhile.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedTokenizerFast

from tether.arguments import parse, print_json, say
from tether.errors import Interrupted, UserError
from tether.language.pretraining.learner import Pretraining, PretrainingConfig, build_model
from tether.language.pretraining.perplexity import held_out_figures
from tether.language.reviews.corpus import Reviews, load_reviews
from tether.learning.run import Run

METHOD: Final = "pretraining"
TOTAL_TOKENS: Final = 10_000_000
PAD: Final = "<pad>"
BOS: Final = "<bos>"
EOS: Final = "<eos>"


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text in, the same text out, nothing unknown.

    Special tokens are ``<pad>`` (0), ``<bos>`` (1), which it puts before every text, and ``<eos>``
    (2), which whoever builds training examples puts after a finished one.

    Args:
        texts: what to learn the merges from.
        vocabulary: size, with the 256 bytes and the special tokens.

    Source:
        Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units"
        (2016), algorithm 1; on bytes as in Radford et al., GPT-2 (2019), section 2.2.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    wrapped: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    return wrapped


def pretrain(
    out: str | Path,
    *,
    config: PretrainingConfig | None = None,
    total_tokens: int | None = None,
    seed: int = 0,
    reviews: Reviews | None = None,
    progress: bool = True,
) -> Pretraining:
    """Learns a language in the run folder `out`, from the start or from where it stopped.

    Args:
        out: a new or empty folder, or a run of this recipe to go on with.
        config: the settings; None takes those of the run, or the defaults.
        total_tokens: budget in predicted tokens; None takes that of the run, or 10 million. A new
            one for an old run stretches what is left of the learning rate's fall.
        seed: decides everything random in a new run.
        reviews: what to learn and to measure on; None takes the corpus.
        progress: show progress on stderr.

    Returns:
        The learner at the end.

    Raises:
        UserError: the settings or the reviews are not those of the run, or not usable.
        RunError: the folder holds something else.
    """
    if total_tokens is not None and total_tokens < 1:
        raise UserError(f"total_tokens is {total_tokens}; expected at least 1")
    reviews = load_reviews() if reviews is None else reviews
    out = Path(out)
    if (out / "run.json").exists():
        run = _open(out)
        if config is not None and config.dump() != run.config:
            raise UserError(f"run {out} has other settings; leave them out, or give another --out")
        if run.spec["corpus"] != reviews.digest:
            raise UserError(f"run {out} learned from other reviews; choose another --out")
    else:
        total = TOTAL_TOKENS if total_tokens is None else total_tokens
        run = Run.create(
            out,
            method=METHOD,
            config=(config or PretrainingConfig()).dump(),
            spec={"seed": seed, "total_tokens": total, "corpus": reviews.digest},
        )
    with run:
        learner = Pretraining(
            PretrainingConfig.load(run.config),
            _tokenizer(run, reviews),
            reviews.train,
            reviews.held_out,
            seed=int(run.spec["seed"]),
            total_tokens=int(run.spec["total_tokens"]) if total_tokens is None else total_tokens,
        )
        run.resume(learner)
        run.train(learner, learner.total_tokens, progress=progress, progress_metric="loss/nll")
    return learner


def export(
    run: str | Path, folder: str | Path, *, reviews: Reviews | None = None
) -> dict[str, Any]:
    """Writes the newest checkpoint as an ordinary Hugging Face folder, in bfloat16.

    The folder loads with ``AutoModelForCausalLM.from_pretrained(folder)`` and ``AutoTokenizer``.
    Beside model and tokenizer it gets ``training.json``: settings, tokens seen, and the held-out
    figures of just these bfloat16 weights, over every held-out review.

    Args:
        run: a run of this recipe, finished or not.
        folder: where to write; files of the same names are replaced.
        reviews: those the run learned from; None takes the corpus.

    Returns:
        What ``training.json`` says.

    Raises:
        UserError: not a run of this recipe, or nothing was saved in it yet.
    """
    reviews = load_reviews() if reviews is None else reviews
    opened = _open(Path(run))
    config = PretrainingConfig.load(opened.config)
    state: Any = opened.load()
    tokenizer = _tokenizer(opened, reviews)
    # The stubs of PreTrainedModel.to are wrong about its arguments.
    model: Any = build_model(config, tokenizer, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(state["model"][name]))
    model.to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    figures = held_out_figures(
        model.to(dtype=torch.float32),
        tokenizer,
        [r.text for r in reviews.held_out],
        context=config.context,
    )
    card = {
        "tokens": int(state["tokens"]),
        "epochs": int(state["tokens"]) / int(state["tokens_per_epoch"]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": opened.spec["seed"],
        "corpus": opened.spec["corpus"],
        "config": config.dump(),
        **figures,
    }
    (Path(folder) / "training.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


@dataclass(frozen=True)
class Options:
    """Learn a small language model of film reviews from nothing, or export one."""

    out: Path | None = None
    """Folder of the run: new, empty, or one to go on with."""
    export: tuple[Path, Path] | None = None
    """A run, and the folder to write its model to."""
    total_tokens: int | None = None
    """Budget in tokens; 10 million for a new run if not given."""
    seed: int = 0
    """Decides everything random in a new run."""
    threads: int | None = None
    """Threads of PyTorch; resuming is bit-exact only with the same number."""
    quiet: bool = False
    """Show no progress."""
    settings: PretrainingConfig = field(default_factory=PretrainingConfig)
    """Of a new run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m tether.language.pretraining`; returns the exit code."""
    prog = "python -m tether.language.pretraining"
    options = None
    try:
        options = parse(Options, sys.argv[1:] if arguments is None else arguments, prog=prog)
        if (options.out is None) == (options.export is None):
            raise UserError(f"give either --out RUN or --export RUN FOLDER; see {prog} --help")
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        if options.export is not None:
            print_json(export(*options.export))
        elif options.out is not None:
            default = options.settings == PretrainingConfig()
            pretrain(
                options.out,
                config=None if default else options.settings,
                total_tokens=options.total_tokens,
                seed=options.seed,
                progress=not options.quiet,
            )
    except UserError as error:
        say(f"tether: {error}")
        return 2
    except Interrupted:
        if options is not None:
            say(f"here the command is: {prog} --out {shlex.quote(str(options.out))}")
        return 130
    return 0


def _open(path: Path) -> Run:
    run = Run.open(path)
    if run.method != METHOD:
        raise UserError(f"run {path} is one of {run.method}, not of {METHOD}")
    return run


def _tokenizer(run: Run, reviews: Reviews) -> PreTrainedTokenizerFast:
    """The run's tokenizer; learned now if the run has none yet."""
    folder = run.path / "tokenizer"
    if not folder.exists():
        texts = [review.text for review in reviews.train]
        tokenizer = train_tokenizer(texts, int(run.config["vocabulary"]))
        unfinished = folder.with_name("tokenizer.unfinished")
        tokenizer.save_pretrained(str(unfinished))
        unfinished.rename(folder)
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(str(folder))
    return loaded


if __name__ == "__main__":
    sys.exit(main())
