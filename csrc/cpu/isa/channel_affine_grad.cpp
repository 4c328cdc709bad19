// The gradient of channel_affine: the ReLU's mask, two products and the channels' sums in one pass.
#include "cpu/isa/channel_numbers.h"
#include "cpu/isa/channel_walk.h"
#include "cpu/isa/entry.h"

namespace dsr::cpu::DSR_ISA {
namespace {

// Where the ReLU is known to have let a number through.
enum class Mask { kNone, kFromInputs, kFromOutput };

template <typename S, typename E, Added kOther, Mask kMask>
struct AffineGrad {
  using Number = S;
  using Numbers = AffinePair<S, kOther>;
  static constexpr int kSums = kOther == Added::kMapped ? 3 : 2;

  const E* grad;
  const E* x;
  const E* other;
  const E* out;
  E* grad_x;
  E* grad_other;
  ChannelAffine<S> by, other_by;
  double* partial;  // [chunks][kSums][channels]
  int64_t channels;
  bool streams, streams_other;

  DSR_INLINE_MEMBER Numbers one(int64_t, int64_t c) const {
    return pair_of_one<kOther>(by, other_by, c);
  }
  template <bool kFull>
  DSR_INLINE_MEMBER Numbers several(int64_t, int64_t c, int64_t n) const {
    return pair_of_several<kOther, kFull>(by, other_by, c, n);
  }

  template <bool kFull>
  DSR_INLINE_MEMBER void step(const Numbers& numbers, int64_t at, int64_t n, Vec<S>* sums) const {
    Vec<S> g = take<kFull, S>(grad + at, n);
    const Vec<S> from = take<kFull, S>(x + at, n);
    Vec<S> added{};
    if constexpr (kOther == Added::kMapped) added = take<kFull, S>(other + at, n);
    if constexpr (kMask != Mask::kNone) {
      Vec<S> y;
      if constexpr (kMask == Mask::kFromOutput) {
        y = take<kFull, S>(out + at, n);
      } else {
        y = numbers.x(from);
        if constexpr (kOther == Added::kMapped) y += numbers.other(added);
      }
      g = among<S>(g, ~(Bits<S>)(y <= 0));  // NaN lets the gradient through
    }
    give<kFull, S>(grad_x + at, g * numbers.x.scale, n, streams);
    Vec<S> by_scale = g * (from - numbers.x.center), by_other_scale{};
    if constexpr (kOther == Added::kMapped) {
      give<kFull, S>(grad_other + at, g * numbers.other.scale, n, streams_other);
      by_other_scale = g * (added - numbers.other.center);
    }
    if constexpr (kOther == Added::kAsItIs) give<kFull, S>(grad_other + at, g, n, streams_other);
    if constexpr (!kFull) {  // what 0 times an infinite center is
      by_scale = keep_head<S>(by_scale, n);
      by_other_scale = keep_head<S>(by_other_scale, n);
    }
    sums[0] += g;
    sums[1] += by_scale;
    if constexpr (kOther == Added::kMapped) sums[2] += by_other_scale;
  }

  DSR_INLINE_MEMBER void finish(int64_t chunk, int64_t c, int64_t, int64_t,
                                const double* sums) const {
    double* to = partial + chunk * kSums * channels + c;
    for (int k = 0; k < kSums; ++k) to[k * channels] = sums[k];
  }
};

template <typename S, typename E, Added kOther, Mask kMask>
void run(const AffineGradArgs<S>& args) {
  const AffineGrad<S, E, kOther, kMask> op{
      .grad = static_cast<const E*>(args.grad),
      .x = static_cast<const E*>(args.x),
      .other = static_cast<const E*>(args.other),
      .out = static_cast<const E*>(args.out),
      .grad_x = static_cast<E*>(args.grad_x),
      .grad_other = static_cast<E*>(args.grad_other),
      .by = args.by,
      .other_by = args.other_by,
      .partial = args.partial,
      .channels = args.grid.channels,
      .streams = passes_caches<S, E>(args.grid, args.grad_x),
      .streams_other = passes_caches<S, E>(args.grid, args.grad_other),
  };
  walk(args.grid, op, args.threads);
}

template <typename S, typename E>
void run_for(const AffineGradArgs<S>& args) {
  if (args.maps_other()) {
    if (args.relu) return run<S, E, Added::kMapped, Mask::kFromInputs>(args);
    return run<S, E, Added::kMapped, Mask::kNone>(args);
  }
  if (args.out) return run<S, E, Added::kAsItIs, Mask::kFromOutput>(args);
  if (args.relu) return run<S, E, Added::kNothing, Mask::kFromInputs>(args);
  run<S, E, Added::kNothing, Mask::kNone>(args);
}

}  // namespace

template <typename S>
void channel_affine_grad(const AffineGradArgs<S>& args) {
  with_element<S>(args.element,
                  [&](auto* typed) { run_for<S, std::remove_pointer_t<decltype(typed)>>(args); });
}

template void channel_affine_grad<float>(const AffineGradArgs<float>&);
template void channel_affine_grad<double>(const AffineGradArgs<double>&);

}  // namespace dsr::cpu::DSR_ISA
