// relu((x - center) * scale + shift + other), where other may have an affine map of its own.
#include <limits>

#include "cpu/isa/channel_numbers.h"
#include "cpu/isa/channel_walk.h"
#include "cpu/isa/entry.h"

namespace dsr::cpu::DSR_ISA {
namespace {

template <typename S, typename E, Added kOther>
struct AffineMap {
  using Number = S;
  using Numbers = AffinePair<S, kOther>;
  static constexpr int kSums = 0;

  const E* x;
  const E* other;
  E* out;
  ChannelAffine<S> by, other_by;
  S least;  // of an output: 0 with ReLU, else minus infinity
  bool streams;

  DSR_INLINE_MEMBER Numbers one(int64_t, int64_t c) const {
    return pair_of_one<kOther>(by, other_by, c);
  }
  template <bool kFull>
  DSR_INLINE_MEMBER Numbers several(int64_t, int64_t c, int64_t n) const {
    return pair_of_several<kOther, kFull>(by, other_by, c, n);
  }

  template <bool kFull>
  DSR_INLINE_MEMBER void step(const Numbers& numbers, int64_t at, int64_t n, Vec<S>*) const {
    Vec<S> y = numbers.x(take<kFull, S>(x + at, n));
    if constexpr (kOther == Added::kAsItIs) y += take<kFull, S>(other + at, n);
    if constexpr (kOther == Added::kMapped) y += numbers.other(take<kFull, S>(other + at, n));
    give<kFull, S>(out + at, larger<S>(broadcast(least), y), n, streams);
  }
};

template <typename S, typename E, Added kOther>
void run(const AffineArgs<S>& args) {
  const AffineMap<S, E, kOther> op{
      .x = static_cast<const E*>(args.x),
      .other = static_cast<const E*>(args.other),
      .out = static_cast<E*>(args.out),
      .by = args.by,
      .other_by = args.other_by,
      .least = args.relu ? S{0} : -std::numeric_limits<S>::infinity(),
      .streams = passes_caches<S, E>(args.grid, args.out),
  };
  walk(args.grid, op, args.threads);
}

}  // namespace

template <typename S>
void channel_affine(const AffineArgs<S>& args) {
  with_element<S>(args.element, [&](auto* typed) {
    using E = std::remove_pointer_t<decltype(typed)>;
    if (!args.other) return run<S, E, Added::kNothing>(args);
    if (args.other_by.is_identity()) return run<S, E, Added::kAsItIs>(args);
    run<S, E, Added::kMapped>(args);
  });
}

template void channel_affine<float>(const AffineArgs<float>&);
template void channel_affine<double>(const AffineArgs<double>&);

}  // namespace dsr::cpu::DSR_ISA
