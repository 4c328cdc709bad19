// The geometry of one convolution, and the BSR view of its weight.
#pragma once

#include <cstdint>

namespace dsr {

// y[n, o, p, q] = sum over (i, kh, kw) of w[o, i, kh, kw] *
//                 x[n, c(o, i), p * stride_h + kh * dilation_h - pad_h, q * stride_w + kw *
//                 dilation_w - pad_w]
// Whatever lies outside [0, height) x [0, width) reads as zero, so pad_h and pad_w are the top and
// left padding and the output size says how much there is at the bottom and on the right.
struct ConvShape {
  int64_t in_channels, height, width;           // C, H, W of one input image
  int64_t out_channels, out_height, out_width;  // O, P, Q of one output image
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
  int64_t groups;

  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t row_length() const { return in_channels / groups * taps(); }
};

// A weight of shape (O, C / groups, KH, KW) as a matrix of O rows in block compressed sparse row
// form: `block_size` consecutive rows, of one group, share their positions. With a block size of 1
// that is CSR. Values are [blocks][block_size].
struct BsrPattern {
  const int32_t* crow_indices;  // [rows / block_size + 1]
  const int32_t* col_indices;   // [blocks], (i * KH + kh) * KW + kw, ascending in each block row
  int64_t rows;
  int64_t blocks;
  int64_t block_size = 1;

  int64_t nnz() const { return blocks * block_size; }
};

// Element strides of a [N, C, H, W] tensor; 0 where a dimension is expanded.
struct Strides4 {
  int64_t n, c, h, w;
};

}  // namespace dsr
