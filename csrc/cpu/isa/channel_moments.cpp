// Mean and variance of each channel of a chunk: sums of deviations from its first element, and of
// their squares, in double.
#include "cpu/isa/channel_walk.h"
#include "cpu/isa/entry.h"

namespace dsr::cpu::DSR_ISA {
namespace {

template <typename E>
struct Moments {
  using Number = double;
  static constexpr int kSums = 2;
  struct Numbers {
    Vec<double> pivot;
  };

  const E* x;
  double* partial;  // [chunks][2][channels]
  int64_t channels;

  // What is not finite would leave nothing but NaN.
  DSR_INLINE_MEMBER static double finite(double value) { return value - value == 0 ? value : 0; }
  DSR_INLINE_MEMBER static double wide(E e) {
    if constexpr (std::is_same_v<E, double>) {
      return e;
    } else {
      return static_cast<double>(value_of<float>(e));
    }
  }

  DSR_INLINE_MEMBER Numbers one(int64_t at, int64_t) const {
    return {broadcast(finite(wide(x[at])))};
  }
  template <bool kFull>
  DSR_INLINE_MEMBER Numbers several(int64_t at, int64_t, int64_t n) const {
    const Vec<double> v = take<kFull, double>(x + at, n);
    return {among<double>(v, (Bits<double>)(v - v == 0))};
  }

  template <bool kFull>
  DSR_INLINE_MEMBER void step(const Numbers& numbers, int64_t at, int64_t n,
                              Vec<double>* sums) const {
    Vec<double> off = take<kFull, double>(x + at, n) - numbers.pivot;
    if constexpr (!kFull) off = keep_head<double>(off, n);
    sums[0] += off;
    sums[1] += off * off;
  }

  DSR_INLINE_MEMBER void finish(int64_t chunk, int64_t c, int64_t at, int64_t count,
                                const double* sums) const {
    const auto n = static_cast<double>(count);
    const double squares = sums[1] - sums[0] * sums[0] / n;
    double* to = partial + 2 * chunk * channels + c;
    to[0] = finite(wide(x[at])) + sums[0] / n;
    to[channels] = squares < 0 ? 0 : squares;  // NaN stays
  }
};

}  // namespace

void channel_moments(const MomentsArgs& args) {
  const auto run = [&](auto* typed) {
    using E = std::remove_pointer_t<decltype(typed)>;
    const Moments<E> op{static_cast<const E*>(args.x), args.partial, args.grid.channels};
    walk(args.grid, op, args.threads);
  };
  if (args.element == Element::kFloat64) {
    with_element<double>(args.element, run);
  } else {
    with_element<float>(args.element, run);
  }
}

}  // namespace dsr::cpu::DSR_ISA
