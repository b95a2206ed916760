"""The yes/no judge: an instruct model is asked whether a text expresses the concept.

The answer is read from the next-token log-probabilities of "yes" and "no", in any case and with
or without a space before; nothing is generated or parsed. A model that thinks first answers after
an empty thought.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from calibrate.common.errors import InputError
from calibrate.engine.forward import final_hidden
from calibrate.engine.memory import over_batches
from calibrate.models.devices import in_double
from calibrate.models.model import LoadedModel, preserving_model_state
from calibrate.models.prompts import encode_reply
from calibrate.models.tokens import Batch
from probes.asking import QUESTION, Asked


@dataclass(frozen=True, eq=False)
class Question(Asked):
    """Asks a model, unsteered.

    question: has places for {text} and {concept}. identity: of the model, if its verdicts are
    cached.
    """

    model: LoadedModel
    question: str = QUESTION
    identity: str = ""

    def answers(self, prompts: Sequence[str]) -> Iterator[tuple[int, float]]:
        """Yield each prompt's index and P(yes), batch by batch.

        Raises: InputError if the tokenizer begins "yes" and "no" with the same token; ModelError
            if not even one prompt fits in memory.
        """
        yes, no = (self._first_tokens(word) for word in ("yes", "no"))
        if set(yes) & set(no):
            raise InputError(f"{self.model.name} must tell yes from no in their first token")
        asked = [encode_reply(self.model, prompt, "") for prompt in prompts]
        sequences = [replace(s, ids=(*s.ids, yes[0])) for s in asked]  # only the position matters

        def answered(batch: Batch) -> list[tuple[int, float]]:
            logits = self.model.logits(final_hidden(self.model, batch))
            for_yes, for_no = (in_double(logits[:, ids]).logsumexp(dim=-1) for ids in (yes, no))
            return list(zip(batch.rows, (for_yes - for_no).sigmoid().tolist(), strict=True))

        most, device = self.model.scoring_tokens, self.model.device
        with preserving_model_state(self.model):
            for found in over_batches(answered, sequences, most, device):
                yield from found

    def _first_tokens(self, word: str) -> list[int]:
        """Tokens that begin a word, in any form; those of space alone begin every word.

        Raises: InputError if there are none.
        """
        forms = (word, word.capitalize(), f" {word}", f" {word.capitalize()}")
        found = {first for form in forms for first in self._first(form)}
        if not found:
            raise InputError(
                f"{self.model.name} must tell yes from no, and has no token that begins {word!r}; "
                "name another judge"
            )
        return sorted(found)

    def _first(self, form: str) -> Iterable[int]:
        tokenizer = self.model.tokenizer
        ids = tokenizer(form, add_special_tokens=False)["input_ids"][:1]
        begun = str(tokenizer.decode(ids)).strip()
        return ids if begun and form.strip().startswith(begun) else []
