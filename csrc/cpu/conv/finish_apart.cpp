#include "cpu/conv/finish_apart.h"

#include <omp.h>

#include "cpu/conv/elements.h"

namespace dsr::cpu {
namespace {

// The numbers of a channel: (x - center) * scale + shift.
template <typename S>
struct OfChannel {
  S center, scale, shift;

  OfChannel(const ChannelAffine<S>& by, int64_t c)
      : center(by.center ? by.center[c] : S{0}),
        scale(by.scale ? by.scale[c] : S{1}),
        shift(by.shift ? by.shift[c] : S{0}) {}
};

// Calls visit(place in `sums`, place in the destination) for every pixel of a channel.
template <typename S, typename Visit>
void visit_channel(const GatherArgs<S>& args, int64_t c, Visit visit) {
  const GatherPlan::Destination& d = args.plan->destination;
  const Strides4& to = args.destination_strides;
  for (int64_t n = 0; n < args.n; ++n) {
    for (int64_t h = 0; h < d.height; ++h) {
      for (int64_t w = 0; w < d.width; ++w) {
        visit(((n * d.channels + c) * d.height + h) * d.width + w,
              n * to.n + c * to.c + h * to.h + w * to.w);
      }
    }
  }
}

template <typename S>
void finish_output(const GatherArgs<S>& args, const S* sums, int64_t c) {
  const Finish<S>& finish = args.finish;
  const Element element = args.destination_element;
  const OfChannel<S> by(finish.affine, c);
  double total = 0, count = 0;
  visit_channel(args, c, [&](int64_t from, int64_t to) {
    S v = sums[from] * by.scale + by.shift;
    if (finish.companion) v += load_element<S>(finish.companion, element, to);
    if (finish.relu && v < 0) v = 0;
    store_element(args.destination, element, to, v);
    total += load_element<S>(args.destination, element, to);
    ++count;
  });
  if (!finish.sums.first) return;
  const double mean = total / count;
  double squares = 0;
  visit_channel(args, c, [&](int64_t, int64_t to) {
    const double off = load_element<S>(args.destination, element, to) - mean;
    squares += off * off;
  });
  finish.sums.first[c] = static_cast<S>(mean);
  finish.sums.second[c] = static_cast<S>(squares / count);
}

template <typename S>
void finish_input_grad(const GatherArgs<S>& args, const S* sums, int64_t c) {
  const Finish<S>& finish = args.finish;
  const Element element = args.destination_element;
  const OfChannel<S> by(finish.affine, c);
  double of_shift = 0, of_scale = 0;
  visit_channel(args, c, [&](int64_t from, int64_t to) {
    const S x = load_element<S>(finish.x, element, to) - by.center;
    S v = finish.relu && x * by.scale + by.shift <= 0 ? S{0} : sums[from];
    of_shift += v;
    of_scale += static_cast<double>(v) * x;
    v *= by.scale;
    if (finish.companion) v += load_element<S>(finish.companion, element, to);
    store_element(args.destination, element, to, v);
  });
  if (!finish.sums.first) return;
  finish.sums.first[c] = static_cast<S>(of_shift);
  finish.sums.second[c] = static_cast<S>(of_scale);
}

}  // namespace

template <typename S>
void finish_apart(const GatherArgs<S>& args, const S* sums) {
  const bool output = args.finish.kind == Finish<S>::kOutput;
#pragma omp parallel for num_threads(args.threads)
  for (int64_t c = 0; c < args.plan->destination.channels; ++c) {
    output ? finish_output(args, sums, c) : finish_input_grad(args, sums, c);
  }
}

template void finish_apart<float>(const GatherArgs<float>&, const float*);
template void finish_apart<double>(const GatherArgs<double>&, const double*);

}  // namespace dsr::cpu
