import pytest
import torch

from foveal.objectives.heads import DINOHead

WIDTH, HIDDEN, BOTTLENECK, K = 6, 10, 4, 9


@pytest.fixture
def head() -> DINOHead:
    head = DINOHead(WIDTH, hidden=HIDDEN, bottleneck=BOTTLENECK, num_prototypes=K)
    return head.init_weights(torch.Generator().manual_seed(0))


def test_state_dict_has_the_official_names_and_shapes(head: DINOHead) -> None:
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        "mlp.0.weight": (HIDDEN, WIDTH),
        "mlp.0.bias": (HIDDEN,),
        "mlp.2.weight": (HIDDEN, HIDDEN),
        "mlp.2.bias": (HIDDEN,),
        "mlp.4.weight": (BOTTLENECK, HIDDEN),
        "mlp.4.bias": (BOTTLENECK,),
        "last_layer.weight_g": (K, 1),
        "last_layer.weight_v": (K, BOTTLENECK),
    }


def test_bottleneck_has_unit_norm(head: DINOHead) -> None:
    out = head(torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1)))
    assert out.shape == (5, BOTTLENECK)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(5), rtol=1e-6, atol=0)


def test_a_zero_bottleneck_stays_finite(head: DINOHead) -> None:
    head.mlp[4].weight.data.zero_()
    assert not head(torch.ones(2, WIDTH)).any()


def test_prototypes_have_norm_g_and_direction_v(head: DINOHead) -> None:
    gain = torch.linspace(0.5, 2, K)[:, None]
    head.last_layer["weight_g"].data.copy_(gain)
    prototypes = head.prototypes()
    torch.testing.assert_close(prototypes.norm(dim=1, keepdim=True), gain, rtol=1e-6, atol=0)
    cosine = torch.nn.functional.cosine_similarity(prototypes, head.last_layer["weight_v"])
    torch.testing.assert_close(cosine, torch.ones(K), rtol=1e-6, atol=0)


def test_logits_equal_those_of_pytorch_weight_norm(head: DINOHead) -> None:
    linear = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(BOTTLENECK, K, bias=False))
    linear.parametrizations.weight.original0.data.copy_(head.last_layer["weight_g"])
    linear.parametrizations.weight.original1.data.copy_(head.last_layer["weight_v"])
    features = head(torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(features @ head.prototypes().T, linear(features), rtol=1e-5, atol=1e-6)


def test_initial_weights_are_a_function_of_the_seed(head: DINOHead) -> None:
    def other(seed: int) -> DINOHead:
        made = DINOHead(WIDTH, hidden=HIDDEN, bottleneck=BOTTLENECK, num_prototypes=K)
        return made.init_weights(torch.Generator().manual_seed(seed))

    same, different = other(0).state_dict(), other(1).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in head.state_dict().items())
    assert not torch.equal(head.state_dict()["mlp.0.weight"], different["mlp.0.weight"])
    assert torch.equal(head.last_layer["weight_g"], torch.ones(K, 1))
    assert not head.mlp[0].bias.any()
    assert head.mlp[0].weight.abs().max() < 0.02 * 6  # std 0.02


def test_gain_is_trained(head: DINOHead) -> None:
    head.prototypes().sum().backward()
    assert head.last_layer["weight_g"].grad is not None
