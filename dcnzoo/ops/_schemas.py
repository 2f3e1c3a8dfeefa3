"""The operators' schemas, for where the compiled library, which defines them, is not: see ``_plain.py``."""

SCHEMAS = (
    "_dcnv3_backward(Tensor grad_output, Tensor input, Tensor offset, Tensor mask, int[] kernel_size, "
    "int[] stride, int[] padding, int[] dilation, int group, int group_channels, float offset_scale, bool "
    "remove_center, bool[3] output_mask) -> (Tensor, Tensor, Tensor)",
    "_dcnv4_backward(Tensor grad_output, Tensor input, Tensor offset_mask, int[] kernel_size, int[] "
    "stride, int[] padding, int[] dilation, int group, int group_channels, float offset_scale, bool "
    "remove_center, bool[2] output_mask) -> (Tensor, Tensor)",
    "_deform_conv_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? offset, Tensor? mask, "
    "int[] stride, int[] padding, int[] dilation, int groups, int? im2col_step, bool[5] output_mask) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    "_deform_roi_pool_backward(Tensor grad_output, Tensor input, Tensor rois, Tensor offset, float "
    "spatial_scale, int sampling_ratio, float gamma, bool[2] output_mask) -> (Tensor grad_input, Tensor "
    "grad_offset)",
    "_ms_deform_attn_backward(Tensor grad_output, Tensor value, Tensor spatial_shapes, Tensor "
    "level_start_index, Tensor sampling_locations, Tensor attention_weights, bool[3] output_mask) -> "
    "(Tensor, Tensor, Tensor)",
    "_roi_align_backward(Tensor grad_output, Tensor rois, Tensor argmax_y, Tensor argmax_x, SymInt[] "
    "input_size, float spatial_scale, int sampling_ratio, int pool_mode, bool aligned) -> Tensor",
    "_roi_align_rotated_backward(Tensor grad_output, Tensor rois, SymInt[] input_size, float "
    "spatial_scale, int sampling_ratio, bool aligned, bool clockwise) -> Tensor",
    "box_iou_rotated(Tensor boxes1, Tensor boxes2, bool over_first=False, bool aligned=False, bool "
    "clockwise=True) -> Tensor",
    "dcnv3(Tensor input, Tensor offset, Tensor mask, int[] kernel_size, int[] stride, int[] padding, "
    "int[] dilation, int group, int group_channels, float offset_scale, bool remove_center) -> Tensor",
    "dcnv4(Tensor input, Tensor offset_mask, int[] kernel_size, int[] stride, int[] padding, int[] "
    "dilation, int group, int group_channels, float offset_scale, bool remove_center) -> Tensor",
    "deform_conv(Tensor input, Tensor weight, Tensor? offset, Tensor? mask, Tensor? bias, int[] stride, "
    "int[] padding, int[] dilation, int groups, int? im2col_step) -> Tensor",
    "deform_conv_transpose(Tensor input, Tensor weight, Tensor? offset, Tensor? mask, Tensor? bias, int[] "
    "stride, int[] padding, int[] output_padding, int[] dilation, int groups, int? im2col_step) -> Tensor",
    "deform_roi_pool(Tensor input, Tensor rois, Tensor offset, int output_h, int output_w, float "
    "spatial_scale, int sampling_ratio, float gamma) -> Tensor",
    "ms_deform_attn(Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor "
    "sampling_locations, Tensor attention_weights) -> Tensor",
    "nms(Tensor boxes, Tensor scores, float iou_threshold, int offset=0) -> Tensor",
    "nms_rotated(Tensor boxes, Tensor scores, float iou_threshold, bool clockwise=True) -> Tensor",
    "roi_align(Tensor input, Tensor rois, int output_h, int output_w, float spatial_scale, int "
    "sampling_ratio, int pool_mode, bool aligned) -> (Tensor output, Tensor argmax_y, Tensor argmax_x)",
    "roi_align_rotated(Tensor input, Tensor rois, int output_h, int output_w, float spatial_scale, int "
    "sampling_ratio, bool aligned, bool clockwise) -> Tensor",
)
