// What store steps write through: a sink finishes the sums of the inner loops on the way out.
//
// A store step asks the sink for the lanes of a channel (lanes along pixels) or of up to a vector
// of channels, puts vectors or single elements through them, and says when it is done with them.
#pragma once

#include "cpu/isa/channel_sums.h"
#include "cpu/isa/source.h"
#include "cpu/isa/unit.h"

namespace dsr::cpu::DSR_ISA {

// A whole vector, past the caches if it `streams`.
template <typename S, typename E>
DSR_INLINE void put(E* p, Vec<S> v, bool streams) {
  if constexpr (std::is_same_v<S, E>) {
    if (streams) return stream(p, v);
  }
  store_as<S>(p, v);
}
// The same of what as_element() gave.
template <typename S, typename E>
DSR_INLINE void put_element(E* p, Vec<S> v, bool streams) {
  if constexpr (std::is_same_v<S, E>) {
    if (streams) return stream(p, v);
  }
  store_element<S>(p, v);
}
// The first n elements.
template <typename S, typename E>
DSR_INLINE void put_head(E* p, Vec<S> v, int64_t n) {
  if (n == kLanes<S>) return store_as<S>(p, v);
  narrow_first<S>(p, v, n);
}

// Two vectors of elements as as_element() gave them, to an address of whole vectors: one vector
// past the caches where there is such a store.
template <typename E>
DSR_INLINE void stream_line(E* p, Vec<float> first, Vec<float> second) {
#if defined(__AVX512F__)
  typedef uint16_t words __attribute__((vector_size(kVectorBytes), may_alias));
  const words a = (words)first, b = (words)second;
  const words line =
      __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33,
                              35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)line);
#else
  trap_unaligned(p);
  store_element<float>(p, first);
  store_element<float>(p + kLanes<float>, second);
#endif
}

// Elements [0, n), whole vectors, in order; at(i) gives as as_element() does those from i on. Past
// the caches go whole vectors of the destination alone: lines in halves take several times as long.
template <typename S, typename E, typename At>
DSR_INLINE void put_vectors(E* to, int64_t n, bool streams, At at) {
  constexpr int64_t V = kLanes<S>;
  int64_t i = 0;
  if constexpr (std::is_same_v<S, E>) {
    if (streams)
      for (; i < n; i += V) stream(to + i, at(i));
  } else {
    if (streams)
      for (; i + 2 * V <= n; i += 2 * V) {
        const Vec<S> first = at(i);
        stream_line(to + i, first, at(i + V));
      }
  }
  for (; i < n; i += V) store_element<S>(to + i, at(i));
}

// Stores the sums as they are.
template <typename S, typename E>
class PlainSink {
 public:
  using Scalar = S;
  using Destination = E;
  static constexpr bool kPlain = true;

  struct Lanes {
    DSR_INLINE_MEMBER void put(E* to, Vec<S> v, bool streams = false) {
      DSR_ISA::put<S>(to, v, streams);
    }
    DSR_INLINE_MEMBER void put_head(E* to, Vec<S> v, int64_t n) { DSR_ISA::put_head<S>(to, v, n); }
    DSR_INLINE_MEMBER void put_one(E* to, S s) { *to = element_of<S, E>(s); }
    // Vectors overlap at the end.
    DSR_INLINE_MEMBER void put_run(E* to, const S* from, int64_t n, bool streams = false) {
      constexpr int V = kLanes<S>;
      if (n >= V) {
        const auto at = [&](int64_t i)
                            DSR_INLINE_LAMBDA { return as_element<S, E>(load(from + i)); };
        put_vectors<S>(to, (n - 1) / V * V, streams, at);
        put(to + n - V, load(from + n - V));
      } else {
        put_head(to, take_head<S>(from, n), n);
      }
    }
    DSR_INLINE_MEMBER void done() {}
  };

  PlainSink(const GatherArgs<S>&, char*) {}
  DSR_INLINE_MEMBER Lanes of_channel(int64_t) { return {}; }
  DSR_INLINE_MEMBER Lanes of_channels(int64_t, int64_t) { return {}; }
  void end_unit(int64_t, int64_t, int64_t) {}
};

// What sinks that compute share: elements that lie where the destination's do.
template <typename S, typename E>
class Beside {
 public:
  Beside(const GatherArgs<S>& args, const void* other)
      : base_(static_cast<const E*>(args.destination)), other_(static_cast<const E*>(other)) {}
  DSR_INLINE_MEMBER bool is_there() const { return other_ != nullptr; }
  DSR_INLINE_MEMBER Vec<S> at(const E* to, int64_t n) const {
    return take_head<S>(other_ + (to - base_), n);
  }

 private:
  const E* base_;
  const E* other_;
};

// Finish::kOutput.
template <typename S, typename E>
class OutputSink {
 public:
  using Scalar = S;
  using Destination = E;
  static constexpr bool kPlain = false;

  struct Lanes {
    const OutputSink& sink;
    AffineLanes<S> affine;
    MomentLanes<S> moments;

    DSR_INLINE_MEMBER void put(E* to, Vec<S> v, bool streams = false) {
      v = as_element<S, E>(finished(to, v, kLanes<S>));
      put_element<S>(to, v, streams);
      if (moments.asked()) moments.add(v);
    }
    DSR_INLINE_MEMBER void put_head(E* to, Vec<S> v, int64_t n) {
      v = finished(to, v, n);
      DSR_ISA::put_head<S>(to, v, n);
      if (moments.asked()) moments.add_head(as_stored(to, v, n), n);
    }
    DSR_INLINE_MEMBER void put_one(E* to, S s) { put_head(to, broadcast(s), 1); }
    DSR_INLINE_MEMBER void put_run(E* to, const S* from, int64_t n, bool streams = false) {
      const int64_t whole = n / kLanes<S> * kLanes<S>;
      const bool adds = sink.residual_.is_there();
      if (moments.asked()) {
        adds ? vectors<true, true>(to, from, whole, streams)
             : vectors<false, true>(to, from, whole, streams);
      } else {
        adds ? vectors<true, false>(to, from, whole, streams)
             : vectors<false, false>(to, from, whole, streams);
      }
      if (whole < n) put_head(to + whole, take_head<S>(from + whole, n - whole), n - whole);
    }
    DSR_INLINE_MEMBER void done() {
      if (moments.asked()) moments.keep();
    }

   private:
    // n elements, whole vectors: what is asked for is known outside the loop.
    template <bool kAdds, bool kSums>
    DSR_INLINE_MEMBER void vectors(E* to, const S* from, int64_t n, bool streams) {
      const Vec<S> floor = sink.floor_;
      put_vectors<S>(to, n, streams, [&](int64_t i) DSR_INLINE_LAMBDA {
        const Vec<S> v =
            as_element<S, E>(finished<kAdds>(to + i, load(from + i), kLanes<S>, floor));
        if constexpr (kSums) {
          if (i == 0) moments.choose_pivot(v, kLanes<S>);
          moments.add_to_pivot(v);
        }
        return v;
      });
    }
    template <bool kAdds>
    DSR_INLINE_MEMBER Vec<S> finished(const E* to, Vec<S> v, int64_t n, Vec<S> floor) const {
      v = v * affine.scale + affine.shift;
      if constexpr (kAdds) v += sink.residual_.at(to, n);
      return larger<S>(floor, v);
    }
    DSR_INLINE_MEMBER Vec<S> finished(const E* to, Vec<S> v, int64_t n) const {
      return sink.residual_.is_there() ? finished<true>(to, v, n, sink.floor_)
                                       : finished<false>(to, v, n, sink.floor_);
    }
    // What a reader of the destination finds.
    DSR_INLINE_MEMBER Vec<S> as_stored(const E* to, Vec<S> v, int64_t n) const {
      if constexpr (std::is_same_v<S, E>) return v;
      return take_head<S>(to, n);
    }
  };

  OutputSink(const GatherArgs<S>& args, char* memory)
      : args_(args),
        residual_(args, args.finish.companion),
        floor_(broadcast(args.finish.relu ? S{0} : -std::numeric_limits<S>::infinity())),
        sums_(args, memory) {}
  DSR_INLINE_MEMBER Lanes of_channel(int64_t d) {
    return {*this, lanes_of_channel(args_.finish.affine, d), sums_.moments_of_channel(d)};
  }
  DSR_INLINE_MEMBER Lanes of_channels(int64_t d, int64_t count) {
    return {*this, lanes_of_channels(args_.finish.affine, d, count), sums_.moments_of_channels(d)};
  }
  // The sums of destination channels [first, last) belong to this unit and begin anew.
  void end_unit(int64_t unit, int64_t first, int64_t last) { sums_.end_unit(unit, first, last); }

 private:
  const GatherArgs<S>& args_;
  Beside<S, E> residual_;
  Vec<S> floor_;
  UnitSums<S> sums_;
};

// Finish::kInputGrad.
template <typename S, typename E>
class InputGradSink {
 public:
  using Scalar = S;
  using Destination = E;
  static constexpr bool kPlain = false;

  struct Lanes {
    const InputGradSink& sink;
    AffineLanes<S> affine;
    SumLanes<S> sums;

    DSR_INLINE_MEMBER void put(E* to, Vec<S> v, bool streams = false) {
      DSR_ISA::put<S>(to, finished(to, v, kLanes<S>), streams);
    }
    DSR_INLINE_MEMBER void put_head(E* to, Vec<S> v, int64_t n) {
      DSR_ISA::put_head<S>(to, finished(to, keep_head<S>(v, n), n), n);
    }
    DSR_INLINE_MEMBER void put_one(E* to, S s) { put_head(to, broadcast(s), 1); }
    DSR_INLINE_MEMBER void put_run(E* to, const S* from, int64_t n, bool streams = false) {
      const int64_t whole = n / kLanes<S> * kLanes<S>;
      if (sink.passed_.is_there()) {
        vectors<true>(to, from, whole, streams);
      } else {
        vectors<false>(to, from, whole, streams);
      }
      if (whole < n) put_head(to + whole, take_head<S>(from + whole, n - whole), n - whole);
    }
    DSR_INLINE_MEMBER void done() {
      if (sums.asked()) sums.keep();
    }

   private:
    // n elements, whole vectors. (Sums that nobody asked for cost next to nothing.)
    template <bool kAdds>
    DSR_INLINE_MEMBER void vectors(E* to, const S* from, int64_t n, bool streams) {
      const Vec<S> threshold = sink.threshold_;
      put_vectors<S>(to, n, streams, [&](int64_t i) DSR_INLINE_LAMBDA {
        return as_element<S, E>(finished<kAdds>(to + i, load(from + i), kLanes<S>, threshold));
      });
    }
    template <bool kAdds>
    DSR_INLINE_MEMBER Vec<S> finished(const E* to, Vec<S> v, int64_t n, Vec<S> threshold) {
      const Vec<S> x = sink.x_.at(to, n) - affine.center;
      v = x * affine.scale + affine.shift <= threshold ? Vec<S>{} : v;
      sums.add(v, v * x);
      v = v * affine.scale;
      if constexpr (kAdds) v += sink.passed_.at(to, n);
      return v;
    }
    DSR_INLINE_MEMBER Vec<S> finished(const E* to, Vec<S> v, int64_t n) {
      return sink.passed_.is_there() ? finished<true>(to, v, n, sink.threshold_)
                                     : finished<false>(to, v, n, sink.threshold_);
    }
  };

  InputGradSink(const GatherArgs<S>& args, char* memory)
      : args_(args),
        x_(args, args.finish.x),
        passed_(args, args.finish.companion),
        threshold_(broadcast(args.finish.relu ? S{0} : std::numeric_limits<S>::quiet_NaN())),
        sums_(args, memory) {}
  DSR_INLINE_MEMBER Lanes of_channel(int64_t d) {
    return {*this, lanes_of_channel(args_.finish.affine, d), sums_.sums_of_channel(d)};
  }
  DSR_INLINE_MEMBER Lanes of_channels(int64_t d, int64_t count) {
    return {*this, lanes_of_channels(args_.finish.affine, d, count), sums_.sums_of_channels(d)};
  }
  void end_unit(int64_t unit, int64_t first, int64_t last) { sums_.end_unit(unit, first, last); }

 private:
  const GatherArgs<S>& args_;
  Beside<S, E> x_, passed_;
  Vec<S> threshold_;  // of z, where its gradient ends; NaN where it never does
  UnitSums<S> sums_;
};

}  // namespace dsr::cpu::DSR_ISA
