"""What well-known forks of Caffe have added: which fields mean nothing here, which are refused, whose types are whose.

Data only; the names are those of public prototxts and of the forks' manuals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NVCAFFE, SSD, INTEL, OPENCL = "NVCaffe", "SSD", "Intel's Caffe", "OpenCL Caffe"
RISTRETTO, CPM, TSN = "Ristretto", "Convolutional Pose Machines", "Temporal Segment Networks"
SKIM = "SkimCaffe"

_NUMBERS = "forward_type backward_type forward_math backward_math cudnn_math_override"
_SKIPPED = {
    NVCAFFE: {
        "NetParameter": "default_forward_type default_backward_type default_forward_math default_backward_math "
        "default_conv_algos_override default_cudnn_math_override global_grad_scale global_grad_scale_adaptive "
        "reduce_buckets eltwise_mem_sharing",
        "LayerParameter": _NUMBERS,
        "V1LayerParameter": _NUMBERS,
        "ConvolutionParameter": "conv_algos_override cudnn_convolution_algo_seeker cudnn_math_override",
        "DataParameter": "cache threads parser_threads",
        "TransformationParameter": "use_gpu_transform",
        "SolverParameter": "test_and_snapshot_start_epoch test_and_snapshot_last_epochs store_blobs_in_old_format",
    },
    SSD: {"SolverParameter": "eval_type ap_version show_per_class_result"},
    INTEL: {"NetParameter": "compile_net_state", "LayerParameter": "split_param"},
    RISTRETTO: {
        "LayerParameter": "quantization_param",
        "V1LayerParameter": "quantization_param",
        "ConvolutionParameter": "quantization_param",
        "InnerProductParameter": "quantization_param",
    },
    SKIM: {
        "SolverParameter": "winograd_sparsity_factor winograd_adjust_threshold",
        "ConvolutionParameter": "dump_parameter dump_activation parameter_sparsity_pattern_histogram",
        "InnerProductParameter": "dump_parameter dump_activation spmdm_transpose_in spmdm_transpose_out",
    },
}
"""Fork -> message -> its fields there that choose number formats, memory, threads or what is shown, never results.

global_grad_scale keeps half precision gradients from vanishing and is divided out again; ours are float32.
"""
_ENGINES = (
    (re.compile(r"MKL\w*(:[\w,]*)?"), INTEL),
    (re.compile(r"(INTEL_)?SPATIAL|LIBDNN|GREENTEA"), OPENCL),
    (re.compile(r"CAFFE|CUDNN|DEFAULT"), NVCAFFE),
)
"""Values of `engine`, in messages that have none in Caffe or as names that it hasn't, and whose they are."""

_OFF = {"false", "0", "0.0", "0.", ""}
_TRAIN_LONGER = "forcereg has no such schedule: use lr_policy step, multistep or poly"
_REFUSED = {
    "SolverParameter": {
        **dict.fromkeys(
            ("larc", "larc_policy", "larc_turbo", "larc_ratio", "local_lr_auto", "local_gw_ratio"),
            (NVCAFFE, "rates of its layers' own, which forcereg lacks: remove it and set base_lr for plain SGD"),
        ),
        "min_lr": (NVCAFFE, f"a lower bound of the rate; {_TRAIN_LONGER} with a max_iter at which it is reached"),
        **dict.fromkeys(
            ("rampup_interval", "rampup_lr"),
            (NVCAFFE, "a rising rate at the start: write warmup_iter for rampup_interval, warmup_start_lr for "
             "rampup_lr"),
        ),
        **dict.fromkeys(
            ("momentum_policy", "max_momentum", "momentum_power", "weight_decay_policy", "weight_decay_power"),
            (NVCAFFE, "a schedule of momentum or weight decay, which forcereg keeps as they are: remove it"),
        ),
        **dict.fromkeys(("stagelr", "stageiter"), (CPM, 'for lr_policy "multifixed"; use multistep with stepvalue')),
        "plateau_winsize": (SSD, 'for lr_policy "plateau"; use multistep with stepvalue'),
    },
    "NetParameter": {
        "bn_stats_batch_size": (INTEL, "BatchNorm over parts of a batch; remove it and use that batch_size"),
    },
    "LossParameter": {
        **dict.fromkeys(
            ("class_weighting", "weight_by_label_freqs"),
            ("SegNet", "weights of classes, which forcereg's losses lack: remove it, or register a loss of your own"),
        ),
    },
    "BatchNormParameter": {
        **dict.fromkeys(
            ("use_weight_bias", "bias_term", "filler"),
            (SKIM, "a scale and a shift inside: put a Scale layer with bias_term behind, and remove it"),
        ),
    },
    "DataParameter": {
        "shuffle": (NVCAFFE, "forcereg reads a database in its order: shuffle its records when it is made"),
    },
    "TransformationParameter": {
        **dict.fromkeys(
            ("resize_param", "noise_param", "distort_param", "expand_param", "emit_constraint", "crop_h", "crop_w"),
            (SSD, ""),
        ),
        **dict.fromkeys(
            ("img_rand_resize_lower", "img_rand_resize_upper", "rand_resize_ratio_lower", "rand_resize_ratio_upper",
             "vertical_stretch_lower", "vertical_stretch_upper", "allow_upscale", "random_seed"), (NVCAFFE, "")
        ),
        **dict.fromkeys(("random_resize_param", "random_aspect_ratio_param"), (INTEL, "")),
        **dict.fromkeys(
            ("fix_crop", "more_fix_crop", "multi_scale", "scale_ratios", "max_distort", "is_flow", "original_image"),
            (TSN, ""),
        ),
    },
}  # fmt: skip
"""Message -> field -> fork, and what it means and what to do."""
TRANSFORM = "it changes what the net sees, which forcereg doesn't: prepare the images so, and remove it"

_TYPES = {
    SSD: "AnnotatedData Normalize Permute PriorBox DetectionOutput DetectionEvaluate MultiBoxLoss VideoData",
    "Faster R-CNN": "ROIPooling SmoothL1Loss Proposal AnchorTarget ProposalTarget",
    "R-FCN": "PSROIPooling BoxAnnotatorOHEM SmoothL1LossOHEM SoftmaxWithLossOHEM",
    "Mask R-CNN": "ROIAlign ROIAlignment",
    "SegNet": "BN Upsample DenseImageData",
    "PSPNet": "Interp",
    "DeepLab": "ImageSegData MatWrite MatRead DenseCRF UniqueLabel SegAccuracy ImageDim",
    "CRF-RNN": "MultiStageMeanfield",
    "SENet": "Axpy",
    "ShuffleNet": "ShuffleChannel ChannelShuffle",
    "MobileNet": "ConvolutionDepthwise DepthwiseConvolution DepthwiseConv ConvolutionDw ReLU6",
    "FlowNet": "Correlation Correlation1D Resample FlowWarp CustomData DataAugmentation L1Loss LpqLoss Downsample "
    "ChannelNorm FlowAugmentation GenerateAugmentationParameters Accum Mean",
    CPM: "CPMData ImResize Nms",
    "YOLO": "Reorg RegionLoss RegionTarget RegionOutput BoxData EvalDetection DetectionLoss YoloDetectionOutput "
    "Yolov3DetectionOutput YoloSeg Yolov3",
    "Deformable ConvNets": "DeformableConvolution DeformablePSROIPooling",
    "face recognition": "CenterLoss MarginInnerProduct LargeMarginInnerProduct LabelSpecificAdd TripletLoss NormLoss",
    NVCAFFE: "DetectNetTransformation",
    SKIM: "ConvolutionReLU ConvolutionReLUPool ConvolutionReLUPoolLRN InnerProductReLUDropout ReLUPooling Winograd "
    "MKLBatchNorm MKLConvolution MKLLRN MKLPooling MKLReLU",
    TSN: "SegmentConsensus SegFlow Gather Scatter",
    "RetinaNet": "FocalLoss SigmoidFocalLoss",
}
"""Fork or work -> layer types of its."""
_WITH_GROUPS = "a Convolution with a group for each channel computes the same"
_INSTEAD = {
    "BN": "a BatchNorm and a Scale compute the same from other blobs",
    "ReLU6": "a Clip of min 0 and max 6 computes the same",
    **dict.fromkeys(_TYPES["MobileNet"].split()[:-1], _WITH_GROUPS),
    **{kind: f"{kind.removeprefix('MKL')} computes the same" for kind in _TYPES[SKIM].split() if "MKL" in kind},
    "L1Loss": "EuclideanLoss is the nearest here",
}
_OLD_TYPES = {
    "Faster R-CNN": "ROI_POOLING SMOOTH_L1_LOSS",
    "SegNet": "BN UPSAMPLE DENSE_IMAGE_DATA",
    "CRF-RNN": "MULTI_STAGE_MEANFIELD",
    "DeepLab": "INTERP DENSE_CRF SEG_ACCURACY UNIQUE_LABEL MAT_READ MAT_WRITE IMAGE_SEG_DATA DENSECRF",
}
"""Fork -> types of the old format that it added."""


def without_effect(message: str, field: str, values: Sequence[str]) -> str:
    """Whose field it is, if it changes no results here, at least with these values; '' otherwise."""
    # Caffe's own stands in a message of parameters: beside these it is Intel's
    if field == "engine" and message in ("LayerParameter", "NetParameter", "SolverParameter"):
        return INTEL
    if field == "engine":
        return next((fork for form, fork in _ENGINES if values and all(map(form.fullmatch, values))), "")
    for fork, messages in _SKIPPED.items():
        if field in messages.get(message, "").split():
            return fork
    # switched off, what matters has no effect either
    fork, _ = _REFUSED.get(message, {}).get(field, ("", ""))
    return fork if values and set(values) <= _OFF else ""


def refused(message: str, field: str) -> str:
    """'a field of NVCaffe: ...' about a field that matters and that we lack, '' for others."""
    fork, words = _REFUSED.get(message, {}).get(field, ("", ""))
    return f"a field of {fork}: {words or TRANSFORM}" if fork else ""


def home(kind: str) -> str:
    """Whose layer type it is, 'SSD'; '' if nobody known."""
    if kind.endswith("Ristretto"):
        return RISTRETTO
    return next((fork for fork, types in _TYPES.items() if kind in types.split()), "")


def home_of(param: str) -> str:
    """Whose message of parameters it is, by the layer type of its name."""
    bare = param.removesuffix("_param").replace("_", "")
    # types and messages differ in capitals and underscores only
    return next((fork for fork, types in _TYPES.items() if bare in types.lower().split()), "")


def instead(kind: str) -> str:
    """What of Caffe's computes the same as a fork's layer type, '' for nothing."""
    if kind.endswith("Ristretto"):
        return f"{kind.removesuffix('Ristretto')} computes the same in full precision"
    return _INSTEAD.get(kind, "")


def old_home(kind: str) -> str:
    """Whose type of the old format it is, '' if nobody known."""
    return next((fork for fork, types in _OLD_TYPES.items() if kind in types.split()), "")
