"""Ranges, layout and the way back."""

import torch

from soda_dist.models.pixels import source_input, target_input, to_uint8


def every_level() -> torch.Tensor:
    """uint8 [2, 16, 16, 3] with every level in every channel, no two channels alike."""
    levels = torch.arange(256, dtype=torch.uint8).view(16, 16)
    first = torch.stack([levels, levels.flip(0), levels.T.contiguous()], -1)
    return torch.stack([first, first.flip(2)])


def test_target_spans_minus_one_to_one_and_comes_back_exactly():
    images = every_level()
    x = target_input(images)
    assert x.dtype == torch.float32 and x.shape == (2, 3, 16, 16) and x.is_contiguous()
    assert float(x.min()) == -1 and float(x.max()) == 1
    torch.testing.assert_close(x[1, 2, 5, 7], images[1, 5, 7, 2] / 127.5 - 1)
    assert torch.equal(to_uint8(x), images)


def test_what_cannot_be_shown_is_clipped_and_levels_are_rounded_to_the_nearest():
    values = torch.tensor([-1.4, 1.6, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    shown = to_uint8(values)
    assert shown.is_contiguous() and shown[0, :, :, 1].flatten().tolist() == [0, 255, 0, 1]


def test_source_is_normalised_by_channel():
    images = every_level()
    x = source_input(images)
    assert x.dtype == torch.float32 and x.is_contiguous()
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = (images[..., channel].double() / 255 - mean) / std
        torch.testing.assert_close(x[:, channel].double(), expected, rtol=0, atol=1e-6)
