"""What readers look for when they grade replies: 0 not, 1 somewhat, 2 clearly.

The graded replies of built-in concepts were graded by these rules (docs/judges.md), and `calibrate
grade` shows them. They are not part of a judge's question: a definition there made every judge
tried worse. Readers grade a text without its prompt; word salad, loops and meaningless text are 0.
"""

from __future__ import annotations

GRADES = (0, 1, 2)
_RUBRICS = {
    "apathetic": (
        "Indifference: no interest, concern or energy, nothing worth the trouble. 1: shrugging, "
        "listless or uncaring in tone or in a part; 2: it is what the text conveys. Anything else "
        "is 0."
    ),
    "depression": (
        "Low mood: sadness, emptiness, hopelessness, loneliness, worthlessness, no pleasure in "
        "anything. 1: sad, bleak or dejected in tone or in a part; 2: it is what the text conveys. "
        "Anger, worry, tiredness and bad news told soberly are 0."
    ),
    "evil": (
        "Malice: harm, cruelty, domination or corruption that someone wants, enjoys, plans or "
        "praises. 1: sinister, threatening or cruel in tone or in a part; 2: it is what the text "
        "conveys. Harm that is reported or condemned is 0."
    ),
    "humorous": (
        "Funny, or meant to be: a joke, wit, a comic turn, absurdity that is meant. 1: playful "
        "with a comic touch, or a joke that fails; 2: clearly comic. Cheerfulness alone is 0."
    ),
    "impolite": (
        "Rude: insults, contempt, vulgarity, disrespect for the person spoken to or of. 1: curt, "
        "snide, harsh or vulgar in tone or in a part; 2: openly rude. Honest criticism and "
        "refusals in a civil tone are 0."
    ),
    "joy": (
        "Happiness: delight, gladness, excitement, warm enjoyment, of the speaker or of those told "
        "of. 1: glad, warm or enthusiastic in tone or in a part; 2: it is what the text conveys. "
        "Neutral description and mere politeness are 0."
    ),
    "lying": (
        "Deceit: someone says what is false and knows it, or misleads, and a reader can tell. 1: "
        "an evasion, an excuse, a claim that seems knowingly untrue, or deceit in a part of what "
        "is told; 2: it is what the text conveys. Honest mistakes and plain stories are 0."
    ),
    "optimistic": (
        "A hopeful outlook: things are going well or will, there is promise, opportunity, "
        "confidence. 1: upbeat, hopeful or encouraging in tone or in a part; 2: it is what the "
        "text conveys. Neutral description, and pleasure without any outlook, are 0."
    ),
}


def rubric(concept: str) -> str:
    """What 0, 1 and 2 mean for a concept, in one paragraph.

    >>> rubric("surprise")
    '0: does not express surprise. 1: somewhat, or only in a part. 2: clearly.'
    """
    return _RUBRICS.get(
        concept, f"0: does not express {concept}. 1: somewhat, or only in a part. 2: clearly."
    )
