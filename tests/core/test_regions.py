"""Which tokens have which concepts and see what, held against the rule written out token by token."""

from __future__ import annotations

import pytest
import torch

from seqlora.errors import SeqLoRAError
from seqlora.lora.compose import owners
from seqlora.lora.types import LoRAPair
from seqlora.prompt.regions import RegionPlan, Tokens, box_mask

LEFT, MIDDLE = box_mask(0, 0, 0.5, 1), box_mask(0.25, 0, 0.5, 1)  # they overlap in the second of four columns
PLAN = RegionPlan([LEFT, MIDDLE], [3, 2, 4], [(0,), (1,), (), (0, 1)])
OWNER = [0] * 3 + [1] * 2 + [2] * 4  # of the text's tokens: the prompt, region 1, region 2
INSIDE = [{1}, {1, 2}, {2}, set()] * 2  # of the tokens of a picture of 2 rows and 4 columns


def tokens(joint: bool = True) -> Tokens:
    return Tokens(PLAN, 9, {8: (1, 2, 4)}, joint)


def seen(groups, queries: int, keys: int) -> list[list[bool]]:
    table = torch.zeros(queries, keys, dtype=torch.bool)
    for rows, columns in groups:
        table[rows[:, None], columns] = True
    assert sorted(row for rows, _ in groups for row in rows.tolist()) == list(range(queries))  # each in one group
    return table.tolist()


def test_a_picture_has_the_concepts_of_its_regions():
    expected = [[float(1 in at), float(2 in at), 1.0, float(bool(at))] for at in INSIDE]
    assert tokens().shares(8).tolist() == expected


def test_a_text_has_the_concepts_of_its_own_region():
    expected = [[float(own == 1), float(own == 2), 1.0, float(own > 0)] for own in OWNER]
    assert tokens().shares(9).tolist() == expected
    assert tokens().shares(17).tolist() == expected + tokens().shares(8).tolist()


def test_a_mask_gives_shares_between_none_and_all():
    plan = RegionPlan([torch.tensor([[1.0, 0.0], [0.5, 0.0]])], [1, 1], [(0,)])
    assert Tokens(plan, 2, {1: (1, 1, 1), 4: (1, 2, 2)}, False).shares(4)[:, 0].tolist() == [1.0, 0.0, 0.5, 0.0]
    assert Tokens(plan, 2, {1: (1, 1, 1), 4: (1, 2, 2)}, False).shares(1)[:, 0].tolist() == [0.375]


def test_every_frame_of_a_clip_has_the_same_regions():
    clip = Tokens(PLAN, 9, {24: (3, 2, 4)}, False)
    assert clip.shares(24).tolist() == tokens().shares(8).tolist() * 3


def test_a_picture_sees_the_prompt_and_the_texts_of_its_regions():
    expected = [[own == 0 or own in at for own in OWNER] for at in INSIDE]
    assert seen(tokens(False).groups(8, 9), 8, 9) == expected


def test_in_one_sequence_texts_see_themselves_the_prompt_and_their_part_of_the_picture():
    text = [[other in (0, own) for other in OWNER] + [own == 0 or own in at for at in INSIDE] for own in OWNER]
    picture = [[own == 0 or own in at for own in OWNER] + [True] * 8 for at in INSIDE]
    assert seen(tokens().groups(17, 17), 17, 17) == text + picture


def test_what_is_no_look_at_a_text_is_left_alone():
    assert tokens().groups(8, 8) is None and tokens().groups(9, 9) is None and tokens(False).groups(17, 17) is None


def test_a_region_smaller_than_a_token_has_one_all_the_same():
    plan = RegionPlan([box_mask(0.01, 0.01, 0.02, 0.02)], [1, 2], [(0,)])
    groups = Tokens(plan, 3, {4: (1, 2, 2)}, False).groups(4, 3)
    assert seen(groups, 4, 3) == [[True, True, True]] + [[True, False, False]] * 3


def test_a_text_that_is_repeated_keeps_its_regions_and_a_foreign_one_has_none():
    twice = Tokens(PLAN, 18, {8: (1, 2, 4)}, False)
    assert twice.shares(18).tolist() == tokens().shares(9).tolist() * 2
    foreign = Tokens(PLAN, 10, {8: (1, 2, 4)}, False)
    assert foreign.shares(10).tolist() == [[0.0, 0.0, 1.0, 0.0]] * 10 and foreign.groups(8, 10) is None


def test_lengths_that_cannot_tell_are_refused():
    with pytest.raises(SeqLoRAError, match="as many as the picture"):
        Tokens(PLAN, 9, {9: (1, 3, 3)}, False)
    with pytest.raises(SeqLoRAError, match="what 11 tokens of this model are"):
        tokens().shares(11)


def test_a_box_is_cut_at_the_picture_and_an_empty_one_is_refused():
    assert box_mask(0.5, 0, 9, 1).mean() == 0.5
    with pytest.raises(SeqLoRAError, match="holds nothing of the picture"):
        box_mask(0.5, 0.5, 0, 0.5)


def test_columns_of_a_composition_are_known_by_concept():
    one, two = LoRAPair(torch.zeros(4, 2), torch.zeros(5, 2)), LoRAPair(torch.zeros(4, 1), torch.zeros(5, 1))
    assert owners([{"a": one}, {"b": one, "a": two}]) == {"a": [0, 0, 1], "b": [1, 1]}
