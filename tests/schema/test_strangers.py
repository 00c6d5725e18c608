"""What strangers' prototxts hold, in their style: each is read, or refused in a line that says whose it is."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from forcereg.errors import ForceregError
from forcereg.net.load import shape_net
from forcereg.schema.text import parse_net, parse_solver, read_net
from forcereg.schema.types import unknown_type

IMAGE = 'layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }\n'
REGISTER = 'for one of your own register a class by forcereg.layer("{0}") and give --import MODULE'


def told(text: str) -> str:
    """The error that a net ends in, read and built in phase TEST."""
    with warnings.catch_warnings(), pytest.raises(ForceregError) as caught:
        warnings.simplefilter("ignore")
        shape_net(parse_net(IMAGE + text, "n"))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("n:2:")
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "param", "fork"),
    [
        ("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }", "SSD"),
        ("Normalize", 'norm_param { across_spatial: false scale_filler { type: "constant" value: 20 } }', "SSD"),
        ("PriorBox", "prior_box_param { min_size: 60 aspect_ratio: 2 flip: true clip: false step: 16 }", "SSD"),
        ("DetectionOutput", "detection_output_param { nms_param { nms_threshold: 0.45 top_k: 400 } }", "SSD"),
        ("AnnotatedData", "transform_param { resize_param { prob: 1 height: 300 } } annotated_data_param { }", "SSD"),
        ("ROIPooling", "roi_pooling_param { pooled_w: 7 pooled_h: 7 spatial_scale: 0.0625 }", "Faster R-CNN"),
        ("SmoothL1Loss", "smooth_l1_loss_param { sigma: 3.0 }", "Faster R-CNN"),
        ("PSROIPooling", "psroi_pooling_param { spatial_scale: 0.0625 output_dim: 21 group_size: 7 }", "R-FCN"),
        ("BN", 'bn_param { scale_filler { type: "constant" value: 1 } bn_mode: INFERENCE }', "SegNet"),
        ("Upsample", "upsample_param { scale: 2 upsample_h: 45 }", "SegNet"),
        ("Interp", "interp_param { height: 60 width: 60 }", "PSPNet"),
        ("ImageSegData", 'image_data_param { source: "l" label_type: PIXEL } transform_param { }', "DeepLab"),
        ("Axpy", "", "SENet"),
        ("ShuffleChannel", "shuffle_channel_param { group: 3 }", "ShuffleNet"),
        ("DepthwiseConvolution", "convolution_param { num_output: 3 kernel_size: 3 engine: CAFFE }", "MobileNet"),
        ("ConvolutionRistretto", "quantization_param { precision: MINIFLOAT mant_bits: 10 }", "Ristretto"),
        ("DetectNetTransformation", "detectnet_groundtruth_param: { stride: 16 }", "NVCaffe"),
        ("CPMData", "cpm_transform_param { stride: 8 }", "Convolutional Pose Machines"),
        ("Reorg", "reorg_param { stride: 2 }", "YOLO"),
        ("MyOwn", "my_param { x: 1 } other: [1, 2]", ""),
    ],
)
def test_types_of_forks(kind: str, param: str, fork: str) -> None:
    said = told(f'layer {{ name: "l" type: "{kind}" bottom: "data" top: "l" {param} }}')
    whose = f"it is of {fork}'s fork" if fork else "Caffe has no such type"
    assert said.startswith(f"n:2: layer 'l': unknown layer type '{kind}'; `forcereg layers` lists all")
    assert whose in said and said.endswith(f"{REGISTER.format(kind)})") and "did you mean" not in said


@pytest.mark.parametrize(
    ("kind", "meant"),
    [
        ("Convolutoin", "Convolution"),
        ("convolution", "Convolution"),
        ("CONVOLUTION", "Convolution"),
        ("conv", "Convolution"),
        ("INNER_PRODUCT", "InnerProduct"),
        ("SOFTMAX_LOSS", "SoftmaxWithLoss"),
        ("Relu", "ReLU"),
        ("Batchnorm", "BatchNorm"),
        ("Poolin", "Pooling"),
        ("Reshpae", "Reshape"),
        ("Interp", ""),
        ("PReLU6Layer", ""),
        ("Warp", ""),
    ],
)
def test_what_type_is_meant(kind: str, meant: str) -> None:
    assert (f'did you mean "{meant}"?' if meant else "lists all") in unknown_type(kind)
    assert meant or "did you mean" not in unknown_type(kind)


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("BatchNorm", "bn_param { eps: 1 }",
         "'bn_param' is no field of Caffe's, it is of SegNet's fork; layer 'l' has type BatchNorm, whose options are "
         "in batch_norm_param"),
        ("Pooling", "roi_pooling_param { pooled_w: 7 }",
         "'roi_pooling_param' is no field of Caffe's, it is of Faster R-CNN's fork; layer 'l' has type Pooling, whose "
         "options are in pooling_param"),
        ("SoftmaxWithLoss", "strange_param { }",
         "'strange_param' is no field of Caffe's; layer 'l' has type SoftmaxWithLoss"),
        ("Pooling", "poolng_param { pool: MAX }",
         "'poolng_param' is no field of LayerParameter; did you mean \"pooling_param\"?"),
        ("Data", "data_param { shuffle: true }",
         "'shuffle' is a field of NVCaffe: forcereg reads a database in its order: shuffle its records when it is "
         "made"),
        ("Data", "transform_param { distort_param { hue_prob: 0.5 } }",
         "'distort_param' is a field of SSD: it changes what the net sees, which forcereg doesn't: prepare the images "
         "so, and remove it"),
        ("Data", "transform_param { max_rotation_angle: 5 }",
         "'max_rotation_angle' is no field of Caffe's; it changes what the net sees, which forcereg doesn't: prepare "
         "the images so, and remove it"),
        ("Data", "transform_param { miror: true }",
         "'miror' is no field of TransformationParameter; did you mean \"mirror\"?"),
        ("SoftmaxWithLoss", "loss_param { class_weighting: 0.2 class_weighting: 3 }",
         "'class_weighting' is a field of SegNet: weights of classes, which forcereg's losses lack: remove it, or "
         "register a loss of your own"),
        ("SoftmaxWithLoss", "softmax_param { weight_source: 'x' }", "'weight_source' is no field of SoftmaxParameter"),
        ("ReLU", "relu_param { engine: CUDN }", "'CUDN' is no value of Engine; did you mean \"CUDNN\"?"),
    ],
)  # fmt: skip
def test_fields_in_types_of_caffes(kind: str, fields: str, said: str) -> None:
    found = told(f'layer {{ name: "l" type: "{kind}" bottom: "data" top: "l" {fields} }}')
    assert found.split(": ", 1)[1] == said


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("stagelr: 0.1", 'is a field of Convolutional Pose Machines: for lr_policy "multifixed"; use multistep'),
        ("larc: true", "is a field of NVCaffe: rates of its layers' own, which forcereg lacks: remove it"),
        ("local_lr_auto: true", "is a field of NVCaffe: rates of its layers' own"),
        ("min_lr: 1e-5", "is a field of NVCaffe: a lower bound of the rate; forcereg has no such schedule"),
        ("rampup_interval: 100", "is a field of NVCaffe: a rising rate at the start: write warmup_iter for"),
        ("plateau_winsize: 100", 'is a field of SSD: for lr_policy "plateau"; use multistep'),
        ("force_decya: 1", 'is no field of SolverParameter; did you mean "force_decay"?'),
        ("evil_type: 1", "is no field of SolverParameter"),
    ],
)
def test_fields_of_solvers(field: str, said: str) -> None:
    with pytest.raises(ForceregError) as caught:
        parse_solver(f"base_lr: 0.1\n{field}", "s")
    assert str(caught.value).startswith(f"s:2:1: '{field.split(':')[0]}' {said}")
    assert "did you mean" in said or "did you mean" not in str(caught.value)


def test_nets_inside_a_solver_in_two_formats() -> None:
    with pytest.raises(ForceregError) as caught:
        parse_solver('base_lr: 1\nnet_param {\n layer { name: "a" }\n layers { name: "b" } }', "s")
    assert str(caught.value) == (
        "s:4:2: net_param: `layer` (line 3) and `layers` in one net; `layers` is the old format, "
        "make all of them `layer { ... }`"
    )


@pytest.mark.parametrize("coding", ["gbk", "latin-1", "shift-jis", "utf-8"])
def test_comments_in_any_encoding(tmp_path: Path, coding: str) -> None:
    words = "Größe" if coding == "latin-1" else "層の"
    text = f"# {words} \"\nlayer {{ name: \"a#b\" # ' {words}\n type: 'ReLU' }} # {words}"
    path = tmp_path / "n"
    path.write_bytes(text.encode(coding))
    file = read_net(path)
    assert file.message.layer[0].name == "a#b" and file.lines == (2,)
    path.write_bytes(text.replace("a#b", f"#{words}").encode(coding))
    if coding == "utf-8":
        assert read_net(path).message.layer[0].name == f"#{words}"
    else:
        with pytest.raises(ForceregError, match=r"n:2:1\d: byte 0x.. is not UTF-8; save the file as UTF-8"):
            read_net(path)
