// One pass over dense activations, with a few numbers for each channel: moments, an affine map with
// ReLU and an addition, and the gradient of that.
//
// Activations are cut into chunks that depend on their sizes alone. Threads share out chunks, and
// whatever is summed is summed within a chunk and then over chunks, in one fixed order.
#pragma once

#include <cstdint>

#include "cpu/conv/fused.h"

namespace dsr::cpu {

// [images, channels, pixels] in memory; or, channels last, [pixels, channels] of one image that has
// the pixels of all.
struct Grid {
  int64_t images, channels, pixels;
  bool channels_last;
  // A chunk: some whole images, or some pixels of one. Of every channel.
  int64_t chunk_images, chunk_pixels, pieces;  // chunks of one image, 1 where images are whole
  int64_t chunks;
};

// The chunks of [n, channels, pixels], or of [n, pixels, channels].
Grid make_grid(int64_t n, int64_t channels, int64_t pixels, bool channels_last);

struct MomentsArgs {
  Grid grid;
  const void* x;
  Element element;
  double* partial;  // [chunks][2][channels]: the mean, and the squared deviations from it
  int threads;
};

// out = relu((x - center) * scale + shift + other), where other may have an affine map, too.
template <typename S>
struct AffineArgs {
  Grid grid;
  Element element;  // of all activations
  const void* x;
  ChannelAffine<S> by;
  bool relu;
  const void* other;  // or null
  ChannelAffine<S> other_by;
  void* out;
  int threads;
};

// With gm = grad where the output is above 0 or NaN, or everywhere without ReLU:
//
//     grad_x = gm * scale      grad_other = gm * other's scale, or gm
//
// and the sums of gm, gm * (x - center), gm * (other - its center). Other's affine map decides
// whether the last is there. Without it, `other` is null, and an addition shows by `out` alone.
template <typename S>
struct AffineGradArgs {
  Grid grid;
  Element element;
  const void* grad;
  const void* x;
  ChannelAffine<S> by;
  bool relu;
  const void* other;  // or null
  ChannelAffine<S> other_by;
  const void* out;  // the output, to tell where it is above 0; null where x and other tell it
  void* grad_x;
  void* grad_other;  // null where neither other nor out is given
  double* partial;   // [chunks][2 or 3][channels]
  int threads;

  // By its numbers, for the address of an empty `other` is null.
  bool maps_other() const { return !other_by.is_identity(); }
  int sums() const { return maps_other() ? 3 : 2; }
};

// ---- what callers see: the kernels of the active instruction set, then sums over chunks ----

// Bytes of `partial` for that many sums a channel, whatever the number of threads.
int64_t partial_bytes(const Grid& grid, int sums);

// Mean and biased variance [channels] in S: float for kFloat32 and kBFloat16, double for kFloat64.
template <typename S>
void channel_moments(const MomentsArgs& args, S* mean, S* variance);

template <typename S>
void channel_affine(const AffineArgs<S>& args);

template <typename S>
void channel_affine_grad(const AffineGradArgs<S>& args, S* sums);  // [2 or 3][channels]

}  // namespace dsr::cpu
