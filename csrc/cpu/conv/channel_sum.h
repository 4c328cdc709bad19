// The sum of a tensor over batch and image: the gradient of a bias.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"

namespace dsr::cpu {

// Bytes of workspace channel_sums needs, whatever the number of threads.
int64_t channel_sums_workspace(int64_t n, int64_t channels);

// out[c] = sum over n, p, q of x[n, c, p, q], in double and in an order that does not depend on
// `threads`.
template <class S>
void channel_sums(int64_t n, int64_t channels, int64_t height, int64_t width,
                  const S* x,  // [n, channels, height, width], any strides
                  Strides4 strides,
                  S* out,  // [channels]
                  int threads, void* workspace);

}  // namespace dsr::cpu
