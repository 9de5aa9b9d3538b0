import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation

from u2pl_hf import U2PLConfig, U2PLForSemanticSegmentation
from u2pl_hf.model.backbone_u2pl import BasicBlock, Bottleneck
from u2pl_hf.model.convert import published_config, rename_published
from u2pl_hf.model.modeling_u2pl import OutputConv


def narrow_config(**fields) -> U2PLConfig:
    defaults = {"backbone": "resnet18", "base_width": 8, "head_channels": 16, "representation_channels": 12}
    return U2PLConfig(**{**defaults, "num_labels": 5, **fields})


def narrow_model(**fields) -> U2PLForSemanticSegmentation:
    torch.manual_seed(0)
    return U2PLForSemanticSegmentation(narrow_config(**fields))


def images(batch=2, size=33, seed=1) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def labels(batch=2, size=33, classes=5) -> torch.Tensor:
    ids = torch.randint(0, classes, (batch, size, size), generator=torch.Generator().manual_seed(2))
    ids[:, :4] = 255
    return ids


def scramble(model: torch.nn.Module):
    """Give every tensor a value that initialisation would not give it."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif name.endswith("running_var"):
            tensor.copy_(1 + torch.rand(tensor.shape, generator=generator))
        else:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))


@pytest.mark.parametrize("auto_class", [AutoModelForSemanticSegmentation, AutoModel])
@pytest.mark.parametrize("fields", [{}, {"backbone": "resnet50", "stem": "plain", "auxiliary_head": True}])
def test_save_and_load_give_equal_tensors_and_logits(tmp_path, auto_class, fields):
    model = narrow_model(**fields)
    scramble(model)
    model.save_pretrained(tmp_path)
    loaded, report = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is U2PLForSemanticSegmentation
    assert not report["missing_keys"] and not report["unexpected_keys"]
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    model.eval(), loaded.eval()
    with torch.no_grad():
        logits = model(images()).logits
        assert logits.isfinite().all() and torch.equal(logits, loaded(images()).logits)


def test_what_is_not_loaded_is_initialised(tmp_path):
    model = narrow_model()
    scramble(model)
    model.save_pretrained(tmp_path)
    changed = {"num_labels": 3, "auxiliary_head": True, "ignore_mismatched_sizes": True}
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, **changed)
    old = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        if name.startswith("auxiliary_head.") or name.startswith("classifier.8."):
            continue
        assert torch.equal(tensor, old[name]), name
    norm = loaded.auxiliary_head[1]
    for tensor, value in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1)):
        assert (tensor == value).all()
    assert loaded.classifier[8].weight.shape[0] == 3
    assert loaded.classifier[8].weight.abs().max() <= 1 / 16**0.5
    assert loaded.auxiliary_head[0].weight.std().item() == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.1)


def test_initialisation():
    model = narrow_model(backbone="resnet50", base_width=16)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            assert (module.bn3.weight == 0).all()
            assert (module.bn2.weight == 1).all() and (module.bn3.bias == 0).all()
    conv = model.backbone.layer3[1].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.05)
    ends = [module for module in model.modules() if isinstance(module, OutputConv)]
    assert len(ends) == 2 and all((end.bias == 0).all() for end in ends)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50"])
def test_feature_sizes(backbone, output_stride):
    model = narrow_model(backbone=backbone, output_stride=output_stride, auxiliary_head=True).eval()
    # Stem, max-pool with ceil mode, layer2, layer3 where it is strided: each gives (n - 1) // 2 + 1, ceil mode more.
    for size, low, at_8, at_16 in ((65, 17, 9, 5), (97, 25, 13, 7), (128, 33, 17, 9)):
        deep = at_8 if output_stride == 8 else at_16
        with torch.no_grad():
            output = model(images(1, size))
            stages = model.backbone(images(1, size))
        assert [stage.shape[-1] for stage in stages] == [low, deep, deep]
        assert output.logits.shape == (1, 5, low, low)
        assert output.representation.shape == (1, 12, low, low)
        assert output.aux_logits.shape == (1, 5, deep, deep)


@pytest.mark.parametrize(
    ("output_stride", "third", "fourth"), [(8, [1, 2, 2, 2, 2, 2], [4, 8, 16]), (16, [1] * 6, [2, 4, 8])]
)
@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50"])
def test_dilations_and_strides(backbone, output_stride, third, fourth):
    with torch.device("meta"):
        net = U2PLForSemanticSegmentation(narrow_config(backbone=backbone, output_stride=output_stride)).backbone
    expected = {"layer1": [1] * 3, "layer2": [1] * 4, "layer3": third, "layer4": fourth}
    strides = {"layer1": 1, "layer2": 2, "layer3": output_stride // 8, "layer4": 1}
    for name, dilations in expected.items():
        stage = getattr(net, name)
        assert len(stage) == (2 if backbone == "resnet18" else len(dilations))
        for i, (block, dilation) in enumerate(zip(stage, dilations, strict=False)):
            basic = isinstance(block, BasicBlock)
            assert basic == (backbone != "resnet50")
            strided = block.conv1 if basic else block.conv2
            assert strided.stride == ((strides[name],) * 2 if i == 0 else (1, 1))
            for conv in (block.conv1, block.conv2) if basic else (block.conv2,):
                assert conv.dilation == conv.padding == (dilation, dilation)


def test_loss_is_the_mean_over_counted_pixels():
    model = narrow_model().eval()
    target = labels()
    with torch.no_grad():
        output = model(images(), labels=target)
        log_prob = F.interpolate(output.logits, (33, 33), mode="bilinear", align_corners=True).log_softmax(1)
    picked = [
        -log_prob[b, target[b, y, x], y, x]
        for b in range(2)
        for y in range(33)
        for x in range(33)
        if target[b, y, x] < 5
    ]
    assert output.loss.item() == pytest.approx(torch.stack(picked).double().mean().item(), rel=1e-5)


def test_loss_is_float32_under_autocast():
    model = narrow_model().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = model(images(), labels=labels().to(torch.uint8))
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32


def test_labels_that_are_all_ignored_give_zero_with_a_gradient():
    model = narrow_model().eval()
    loss = model(images(), labels=torch.full((2, 33, 33), 255)).loss
    assert loss.item() == 0
    loss.backward()
    gradient = model.classifier[8].weight.grad
    assert gradient is not None and (gradient == 0).all()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    plain = narrow_model(backbone="resnet50", dropout=0.0)
    checkpointed = narrow_model(backbone="resnet50", dropout=0.0)
    for model in (plain, checkpointed):
        for module in model.modules():
            if isinstance(module, Bottleneck):
                # At the initial 0 the gradients inside a residual branch would all be 0.
                torch.nn.init.ones_(module.bn3.weight)
    kwargs = None if use_reentrant is None else {"use_reentrant": use_reentrant}
    checkpointed.gradient_checkpointing_enable(kwargs)
    runs = []
    norm = checkpointed.backbone.layer3[1].bn1
    norm.register_forward_hook(lambda *_: runs.append(1))
    for model in (plain, checkpointed):
        model.train()
        model(images(), labels=labels()).loss.backward()
    assert len(runs) == 2  # the block really was computed twice
    other = dict(checkpointed.named_parameters())
    for name, parameter in plain.named_parameters():
        if not name.startswith("representation_head."):
            torch.testing.assert_close(other[name].grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    buffers = dict(checkpointed.named_buffers())
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffers[name], buffer), name
    assert norm.num_batches_tracked == 1


def test_heads_that_are_not_asked_for_do_not_run():
    model = narrow_model(auxiliary_head=True).eval()

    def fail(*_):
        raise AssertionError("this head ran")

    model.representation_head.register_forward_hook(fail)
    model.auxiliary_head.register_forward_hook(fail)
    output = model(images(), output_representation=False, output_auxiliary=False)
    assert output.representation is None and output.aux_logits is None
    assert list(output) == ["logits"]


def test_no_representation_head():
    model = narrow_model(representation_channels=0).eval()
    assert not any("representation" in name for name in model.state_dict())
    with torch.no_grad():
        assert model(images()).representation is None
        assert isinstance(model(images(), return_dict=False), tuple)


def test_each_image_of_a_batch_is_segmented_alone_in_eval():
    model = narrow_model().eval()
    with torch.no_grad():
        batch, alone = model(images()).logits, model(images()[:1]).logits
    torch.testing.assert_close(batch[:1], alone, rtol=1e-4, atol=1e-5)


def test_two_classes():
    model = narrow_model(num_labels=2, auxiliary_head=True).train()
    output = model(images(), labels=labels(classes=2))
    assert output.logits.shape[1] == output.aux_logits.shape[1] == 2
    assert 0.3 < output.loss.item() < 1.5


def test_parameter_groups_share_out_every_parameter():
    model = narrow_model(auxiliary_head=True)
    groups = [
        {id(parameter) for parameter in group} for group in (model.backbone_parameters(), model.head_parameters())
    ]
    assert groups[0].isdisjoint(groups[1])
    assert groups[0] | groups[1] == {id(parameter) for parameter in model.parameters()}
    assert id(model.aspp.project[0].weight) in groups[1] and id(model.backbone.bn1.weight) in groups[0]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("backbone", "resnet152", "resnet18, resnet34, resnet50, resnet101"),
        ("output_stride", 32, "8, 16"),
        ("stem", "wide", "deep, plain"),
        ("base_width", 0, "at least 1"),
        ("representation_channels", -1, "0 or more"),
        ("dropout", 1.0, "dropout"),
        ("palette", [[0, 0]], "palette"),
    ],
)
def test_impossible_architectures_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message) as error:
        U2PLConfig(**{field: value})
    assert field in str(error.value) and "\n" not in str(error.value)


def test_overrides_at_loading_are_checked(tmp_path):
    narrow_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="output_stride must be one of 8, 16, got 32"):
        AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_stride=32)
    assert AutoModel.from_pretrained(tmp_path, output_stride=16).backbone.layer3[0].conv1.stride == (2, 2)


def test_config_round_trip(tmp_path):
    names = {0: "road", 1: "sky", 2: "tree"}
    config = narrow_config(
        num_labels=3,
        id2label=names,
        label2id={name: i for i, name in names.items()},
        palette=[[128, 64, 128], [70, 130, 180], [107, 142, 35]],
        aspp_dilations=(6, 12, 18),
        output_stride=16,
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is U2PLConfig
    assert loaded.id2label == names and loaded.label2id == config.label2id and loaded.num_labels == 3
    assert loaded.palette == config.palette
    assert list(loaded.aspp_dilations) == [6, 12, 18] and loaded.output_stride == 16
    assert loaded.base_width == 8 and loaded.backbone == "resnet18"


def test_published_names():
    weight = torch.zeros(1)
    renamed = rename_published({"module.encoder.bn1.weight": weight, "decoder.aspp.conv3.0.weight": weight})
    assert list(renamed) == ["backbone.bn1.weight", "aspp.branches.1.0.weight"]
    with pytest.raises(ValueError, match=r"module\.fc\.weight"):
        rename_published({"module.fc.weight": weight})
    with pytest.raises(ValueError, match="not a whole"):
        published_config({"encoder.bn1.weight": weight})
    with pytest.raises(TypeError, match="ouput_stride: no field of U2PLConfig"):
        published_config({}, ouput_stride=16)
