"""Maps of held-out images are kept exactly, and give the scores that calibrate."""

import pytest
import torch
from tiny_model import CAPPED, FUSED, tiny_config, tiny_parts

from moleflow.model.config import ScoringConfig
from moleflow.model.routing.novelty import background_nll
from moleflow.model.verdict.area import Area
from moleflow.model.verdict.maps import pixel_map
from moleflow.training.fit.held_out import HeldOutMaps, StoredMaps, fit_fusion, held_out_scores, without_unused


def maps(*, memory: bool = True) -> HeldOutMaps:
    generator = torch.Generator().manual_seed(0)
    nll, distances = 20 + torch.randn(5, 4, 4, generator=generator), 3 + torch.randn(5, 2, 4, 4, generator=generator)
    return HeldOutMaps(nll, distances if memory else None)


@pytest.mark.parametrize("memory", [True, False])
def test_maps_survive_a_json_document_bit_by_bit(memory: bool) -> None:
    given = maps(memory=memory)
    found = StoredMaps.model_validate_json(StoredMaps.of(given).model_dump_json()).maps()
    assert torch.equal(found.nll, given.nll)
    assert (found.distances is None) == (not memory)
    if found.distances is not None and given.distances is not None:
        assert torch.equal(found.distances, given.distances)


def test_a_document_whose_maps_are_cut_is_refused() -> None:
    stored = StoredMaps.of(maps())
    for part in ("nll", "distances"):
        cut = stored.model_copy(update={part: getattr(stored, part)[:-4]})
        with pytest.raises(ValueError, match="not of the stated shape"):
            StoredMaps.model_validate_json(cut.model_dump_json())


def test_folds_are_joined_in_order() -> None:
    one, other = maps(), maps()
    joined = HeldOutMaps.joined([one, other])
    assert torch.equal(joined.nll, torch.cat((one.nll, other.nll)))
    assert joined.distances is not None
    assert len(joined.distances) == 10


def test_pooled_patches_are_left_out_where_they_have_no_weight() -> None:
    config, given = tiny_config(scoring=FUSED), maps()
    bank, fusion = tiny_parts(config).bank, fit_fusion(config, given)
    assert fusion is not None
    assert without_unused(bank, fusion) == (bank, fusion)
    fusion.gate[1] = 0
    smaller, smallest = without_unused(bank, fusion)
    assert smaller is not None
    assert smallest is not None
    assert (len(smaller.pooled), len(smallest.gate)) == (0, 1)
    assert without_unused(None, None) == (None, None)


@pytest.mark.parametrize("scoring", [ScoringConfig(), CAPPED, FUSED], ids=["published", "capped", "fused"])
def test_scores_peaks_and_backgrounds_are_those_of_prediction(scoring: ScoringConfig) -> None:
    config, given = tiny_config(scoring=scoring), maps()
    fusion = fit_fusion(config, given)
    anomaly = given.nll if fusion is None else fusion(given.nll, given.distances if scoring.memory else None)
    scored = anomaly if scoring.memory else given.nll
    found = held_out_scores(config, fusion, HeldOutMaps(given.nll, given.distances if scoring.memory else None))
    assert torch.allclose(found["scores"], scored.flatten(1).topk(3).values.mean(1))
    assert found["peaks"].tolist() == pytest.approx([pixel_map(each.numpy(), 32, 32, 32).max() for each in anomaly])
    assert found["grounds"].tolist() == pytest.approx(background_nll(given.nll.numpy()).tolist())


@pytest.mark.parametrize("scoring", [ScoringConfig(), CAPPED, FUSED], ids=["published", "capped", "fused"])
def test_nothing_outside_the_area_has_a_part_in_fusion_scores_and_peaks(scoring: ScoringConfig) -> None:
    config, area = tiny_config(scoring=scoring), Area(patches=("0011", "0011", "0011", "0001"))
    inspected = torch.from_numpy(area.mask)

    def found(given: HeldOutMaps) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        given = given if scoring.memory else HeldOutMaps(given.nll, None)
        fusion = fit_fusion(config, given, inspected)
        values = held_out_scores(config, fusion, given, area=area)
        return values, [] if fusion is None else [*fusion.state_dict().values()]

    one, other = maps(), maps()
    assert one.distances is not None and other.distances is not None
    other.nll[:, ~inspected] *= 1.5
    other.distances[..., ~inspected] += 50
    (values, fused), (others, fused_too) = found(one), found(other)
    assert all(torch.equal(values[key], others[key]) for key in ("scores", "peaks"))
    assert all(map(torch.equal, fused, fused_too))
    whole = held_out_scores(config, None, HeldOutMaps(one.nll, None)) if scoring.cap is None else None
    assert whole is None or (values["scores"] <= whole["scores"]).all()
