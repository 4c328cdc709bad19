#include "cpu/elementwise/elementwise.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/dispatch.h"

namespace dsr::cpu {
namespace {

// Numbers of one channel in a chunk. Few enough that sums in float32 stay exact enough, and many
// enough that the sums of chunks are few. Channels last, a lane sums all of them by itself.
constexpr int64_t kPlaneChunk = 2048, kLastChunk = 512;
constexpr int64_t kPieceAlign = 64;  // elements: pieces of an image begin at whole vectors

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Numbers of one channel in this chunk.
int64_t count(const Grid& g, int64_t chunk) {
  if (g.pieces > 1) return std::min(g.chunk_pixels, g.pixels - chunk % g.pieces * g.chunk_pixels);
  return std::min(g.chunk_images, g.images - chunk * g.chunk_images) * g.pixels;
}

// A thread is worth waking for this many elements. No result depends on the number of threads.
int useful_threads(const Grid& g, int threads) {
  constexpr int64_t kEnough = 1 << 14;
  const int64_t useful = ceil_div(g.images * g.channels * g.pixels, kEnough);
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, useful)));
}

template <class Args>
Args with_useful_threads(Args args) {
  args.threads = useful_threads(args.grid, args.threads);
  return args;
}

// Chan's combination of the moments of chunks, of all chunks at once. Means are added as
// differences from the first, unless that is infinite: an infinite mean stays infinite.
template <typename S>
void combine_moments(const Grid& g, const double* partial, S* mean, S* variance) {
  const auto total = static_cast<double>(g.images * g.pixels);
  std::vector<double> m(g.channels, 0.0), squares(g.channels, 0.0);
  const auto first = [&](int64_t c) { return std::isfinite(partial[c]) ? partial[c] : 0.0; };
  for (int64_t k = 0; k < g.chunks; ++k) {
    const double* means = partial + 2 * k * g.channels;
    const auto weight = static_cast<double>(count(g, k));
    for (int64_t c = 0; c < g.channels; ++c) m[c] += weight * (means[c] - first(c));
  }
  for (int64_t c = 0; c < g.channels; ++c) m[c] = first(c) + m[c] / total;
  for (int64_t k = 0; k < g.chunks; ++k) {
    const double* means = partial + 2 * k * g.channels;
    const auto weight = static_cast<double>(count(g, k));
    for (int64_t c = 0; c < g.channels; ++c) {
      const double off = means[c] - m[c];
      squares[c] += means[g.channels + c] + weight * off * off;
    }
  }
  for (int64_t c = 0; c < g.channels; ++c) {
    mean[c] = static_cast<S>(m[c]);
    variance[c] = static_cast<S>(squares[c] / total);
  }
}

}  // namespace

Grid make_grid(int64_t n, int64_t channels, int64_t pixels, bool channels_last) {
  Grid g{n, channels, pixels, channels_last, n, pixels, 1, 1};
  // Then both formats are the same in memory, and this one fills the lanes.
  if (channels == 1 || pixels == 1) g.channels_last = channels > 1;
  if (g.channels_last || channels == 1) {
    g.images = 1;
    g.pixels = n * pixels;
  }
  const int64_t wanted = g.channels_last ? kLastChunk : kPlaneChunk;
  g.chunk_images = 1;
  g.chunk_pixels = g.pixels;
  if (g.pixels > wanted) {
    const int64_t pieces = ceil_div(g.pixels, wanted);
    g.chunk_pixels = ceil_div(ceil_div(g.pixels, pieces), kPieceAlign) * kPieceAlign;
    g.pieces = ceil_div(g.pixels, g.chunk_pixels);
    g.chunks = g.images * g.pieces;
  } else {
    g.chunk_images =
        std::max<int64_t>(1, std::min(g.images, wanted / std::max<int64_t>(1, g.pixels)));
    g.chunks = ceil_div(g.images, g.chunk_images);
  }
  return g;
}

int64_t partial_bytes(const Grid& grid, int sums) {
  return grid.chunks * sums * grid.channels * static_cast<int64_t>(sizeof(double));
}

template <typename S>
void channel_moments(const MomentsArgs& args, S* mean, S* variance) {
  const MomentsArgs used = with_useful_threads(args);
  kernels().channel_moments(used);
  combine_moments(used.grid, used.partial, mean, variance);
}

template <typename S>
void channel_affine(const AffineArgs<S>& args) {
  kernels().channel_affine(with_useful_threads(args));
}

template <typename S>
void channel_affine_grad(const AffineGradArgs<S>& args, S* sums) {
  kernels().channel_affine_grad(with_useful_threads(args));
  const int64_t row = args.sums() * args.grid.channels;
  std::vector<double> total(row, 0.0);
  for (int64_t k = 0; k < args.grid.chunks; ++k)
    for (int64_t i = 0; i < row; ++i) total[i] += args.partial[k * row + i];
  for (int64_t i = 0; i < row; ++i) sums[i] = static_cast<S>(total[i]);
}

template void channel_moments<float>(const MomentsArgs&, float*, float*);
template void channel_moments<double>(const MomentsArgs&, double*, double*);
template void channel_affine<float>(const AffineArgs<float>&);
template void channel_affine<double>(const AffineArgs<double>&);
template void channel_affine_grad<float>(const AffineGradArgs<float>&, float*);
template void channel_affine_grad<double>(const AffineGradArgs<double>&, double*);

}  // namespace dsr::cpu
