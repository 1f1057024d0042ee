import torch

from seqlora.demo.classifier import WEIGHTS, load_classifier, recognise
from seqlora.demo.pictures import all_emoji, concept_pictures, held_out_emoji


def held_out_pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """One picture of every held-out emoji, and their indices."""
    images = torch.cat([concept_pictures(e, 1, seed=77)[0] for e in held_out_emoji()])
    return images, torch.tensor([all_emoji().index(e) for e in held_out_emoji()])


def test_names_held_out_emoji():
    images, index = held_out_pictures()
    assert (recognise(images) == index).float().mean() >= 0.98


def test_names_no_rubble():
    # The same colours and details in the wrong places.
    images, index = held_out_pictures()
    tiles = images.unfold(2, 16, 16).unfold(3, 16, 16).flatten(2, 3)[:, :, torch.randperm(16, generator=torch.manual_seed(0))]
    rubble = tiles.unflatten(2, (4, 4)).transpose(3, 4).flatten(4).flatten(2, 3)
    assert rubble.shape == images.shape
    assert (recognise(rubble) == index).float().mean() < 0.3


def test_embedding_is_a_unit_vector():
    images, _ = held_out_pictures()
    embedding = load_classifier().embed(images[:3])
    assert embedding.shape == (3, 128)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))


def test_weights_stay_small():
    assert WEIGHTS.stat().st_size < 1_500_000
