// The portable kernels against plain loops in double, without Python: for processors that have no
// torch at hand, cross-compiled and run under an emulator. Build: cmake -DDSR_PORTABLE_CHECK=ON.
//
// Prints what it checks; the exit status is 1 where anything is wrong.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/rewire/decide.h"
#include "cpu/conv/channel_sum.h"
#include "cpu/conv/conv_plan.h"
#include "cpu/dispatch.h"
#include "cpu/rewire/rewire.h"
#include "cpu/rewire/sample.h"
#include "portable_check_tensors.h"

namespace {

using namespace dsr;
using cpu::ConvPlan;
using cpu::Direction;
using cpu::Element;
using cpu::Lanes;

constexpr int kThreads = 2;
int failures = 0;

void require(bool good, const std::string& what) {
  if (good) return;
  ++failures;
  std::printf("  WRONG: %s\n", what.c_str());
}
void require_ok(const Status& status) { require(status.is_ok(), status.message); }

struct Case {
  const char* name;
  int64_t n;
  ConvShape shape;  // its output size is filled in by `sized`
  double density;
};

// One output pixel for each position of the kernel, with the same padding on all sides.
ConvShape sized(ConvShape s) {
  s.out_height = (s.height + 2 * s.pad_h - s.dilation_h * (s.kernel_h - 1) - 1) / s.stride_h + 1;
  s.out_width = (s.width + 2 * s.pad_w - s.dilation_w * (s.kernel_w - 1) - 1) / s.stride_w + 1;
  return s;
}

// clang-format off
// in (C, H, W), out O, kernel, stride, padding, dilation, groups
const Case kCases[] = {
    {"several tiles and blocks", 3, {70, 17, 13, 9, 0, 0, 3, 3, 1, 1, 1, 1, 1, 1, 1}, 0.3},
    {"several units of images", 37, {24, 8, 8, 4, 0, 0, 3, 3, 1, 1, 1, 1, 1, 1, 1}, 0.2},
    {"bands of rows, 5 x 5", 1, {10, 41, 37, 3, 0, 0, 5, 5, 1, 1, 2, 2, 1, 1, 1}, 0.2},
    {"strides (2, 3)", 5, {11, 19, 17, 7, 0, 0, 3, 3, 2, 3, 1, 1, 1, 1, 1}, 0.4},
    {"stride 2, narrow", 6, {8, 16, 16, 12, 0, 0, 3, 3, 2, 2, 1, 1, 1, 1, 1}, 0.3},
    {"stride beyond the kernel", 3, {4, 10, 9, 5, 0, 0, 1, 1, 3, 3, 0, 0, 1, 1, 1}, 0.5},
    {"dilation, uneven padding", 4, {6, 12, 15, 5, 0, 0, 3, 2, 1, 1, 3, 1, 2, 3, 1}, 0.5},
    {"groups", 4, {12, 11, 12, 8, 0, 0, 3, 3, 1, 1, 1, 1, 1, 1, 4}, 0.4},
    {"pointwise", 9, {33, 7, 7, 20, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1}, 0.2},
    {"single pixels", 31, {75, 1, 1, 13, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1}, 0.1},
    {"one channel, no padding", 2, {1, 3, 5, 1, 0, 0, 2, 4, 1, 1, 0, 0, 1, 1, 1}, 0.9},
    {"rows of a vector and one", 5, {5, 6, 17, 6, 0, 0, 3, 3, 1, 1, 1, 1, 1, 1, 1}, 0.5},
    {"no non-zeros", 2, {3, 5, 6, 4, 0, 0, 3, 3, 1, 1, 1, 1, 1, 1, 1}, 0.0},
};
// clang-format on

struct Pattern {
  std::vector<int32_t> crow{0}, col;
};

// Some rows are empty.
Pattern random_pattern(const ConvShape& s, double density) {
  Pattern p;
  std::uniform_real_distribution<double> coin(0, 1);
  for (int64_t o = 0; o < s.out_channels; ++o) {
    const bool empty = o % 5 == 3;
    for (int32_t c = 0; c < s.row_length(); ++c)
      if (!empty && coin(generator) < density) p.col.push_back(c);
    p.crow.push_back(static_cast<int32_t>(p.col.size()));
  }
  return p;
}

// Calls visit(k, x element, y element) for every multiply-add of the convolution.
template <typename Visit>
void for_each_product(const ConvShape& s, const Pattern& p, int64_t n, Strides4 x, Strides4 y,
                      Visit visit) {
  for (int64_t o = 0; o < s.out_channels; ++o) {
    const int64_t first = o / (s.out_channels / s.groups) * (s.in_channels / s.groups);
    for (int32_t k = p.crow[o]; k < p.crow[o + 1]; ++k) {
      const int64_t tap = p.col[k] % s.taps(), channel = first + p.col[k] / s.taps();
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t q = 0; q < s.out_height * s.out_width; ++q) {
          const int64_t row = q / s.out_width, col = q % s.out_width;
          const int64_t h = row * s.stride_h + tap / s.kernel_w * s.dilation_h - s.pad_h;
          const int64_t w = col * s.stride_w + tap % s.kernel_w * s.dilation_w - s.pad_w;
          if (h < 0 || h >= s.height || w < 0 || w >= s.width) continue;
          visit(k, i * x.n + channel * x.c + h * x.h + w * x.w,
                i * y.n + o * y.c + row * y.h + col * y.w);
        }
      }
    }
  }
}

// What is right, and the sum of the magnitudes that were added up to it.
struct Reference {
  std::vector<double> sum, magnitude;

  explicit Reference(size_t count) : sum(count), magnitude(count) {}
  void add(int64_t at, double term) {
    sum[at] += term;
    magnitude[at] += std::abs(term);
  }
};

struct References {
  Reference y, grad_x, grad_values, grad_bias;
};

template <typename E>
References references(const ConvShape& s, const Pattern& p, int64_t n, const Tensor<E>& x,
                      const Tensor<E>& grad_y, const std::vector<double>& values,
                      const std::vector<double>& bias) {
  const Strides4 out = grad_y.strides;
  References right{Reference(grad_y.exact.size()), Reference(x.exact.size()),
                   Reference(values.size()), Reference(bias.size())};
  for (int64_t i = 0; i < n * s.out_channels; ++i) {
    const int64_t o = i % s.out_channels;
    for (int64_t q = 0; q < s.out_height * s.out_width; ++q) {
      const int64_t at = i / s.out_channels * out.n + o * out.c + q / s.out_width * out.h +
                         q % s.out_width * out.w;
      right.y.add(at, bias[o]);
      right.grad_bias.add(o, grad_y.exact[at]);
    }
  }
  for_each_product(s, p, n, x.strides, out, [&](int32_t k, int64_t from, int64_t to) {
    right.y.add(to, values[k] * x.exact[from]);
    right.grad_x.add(from, values[k] * grad_y.exact[to]);
    right.grad_values.add(k, x.exact[from] * grad_y.exact[to]);
  });
  return right;
}

template <typename E>
void compare(const std::string& what, const std::vector<E>& found, const Reference& right,
             double precision) {
  const double rounding = sizeof(E) == 2 ? 1.0 / 256 : 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const double wanted = right.sum[i], error = std::abs(number(found[i]) - wanted);
    if (error <= precision * (right.magnitude[i] + 1) + rounding * std::abs(wanted)) continue;
    require(false, what + "[" + std::to_string(i) + "]: " + std::to_string(number(found[i])) +
                       ", expected " + std::to_string(wanted));
    return;
  }
}

template <typename E>
Element element_of() {
  return sizeof(E) == 8   ? Element::kFloat64
         : sizeof(E) == 4 ? Element::kFloat32
                          : Element::kBFloat16;
}

// All passes of one case with values of type S, activations of type E. False where the lanes do not
// apply to it.
template <typename S, typename E>
bool check_passes(const Case& c, Lanes lanes, bool channels_last) {
  const ConvShape s = sized(c.shape);
  const Pattern p = random_pattern(s, c.density);
  const int64_t nnz = static_cast<int64_t>(p.col.size());
  const BsrPattern pattern{p.crow.data(), p.col.data(), s.out_channels, nnz};
  ConvPlan forward, transposed;
  const auto make = [&](Direction direction, ConvPlan* plan) {
    return ConvPlan::make(s, pattern, sizeof(S), lanes, direction, plan);
  };
  if (lanes == Lanes::kRow && !make(Direction::kForward, &forward).is_ok()) return false;
  require_ok(make(Direction::kForward, &forward));
  require_ok(make(Direction::kGradInput, &transposed));
  const Strides4 in = strides_of(s.in_channels, s.height, s.width, channels_last);
  const Strides4 out = strides_of(s.out_channels, s.out_height, s.out_width, channels_last);
  auto x = random_tensor<E>(c.n * in.n, in), grad_y = random_tensor<E>(c.n * out.n, out);
  const auto values = random_tensor<S>(nnz), bias = random_tensor<S>(s.out_channels);
  std::vector<E> y(c.n * out.n), grad_x(c.n * in.n);
  std::vector<S> grad_values(nnz), grad_bias(s.out_channels);

  const References right = references(s, p, c.n, x, grad_y, values.exact, bias.exact);

  std::vector<char> workspace;
  const auto room = [&](const ConvPlan& plan, cpu::Op op) {
    workspace.assign(plan.workspace_bytes(op, c.n, kThreads), 0);
    return workspace.data();
  };
  const Element e = element_of<E>();
  const cpu::Operand<S> from{x.memory.data(), in, e}, gradient{grad_y.memory.data(), out, e};
  forward.sparse_conv2d<S>(c.n, from, values.memory.data(), bias.memory.data(), {y.data(), e, out},
                           {}, kThreads, room(forward, cpu::Op::kForward));
  transposed.sparse_conv2d_grad_input<S>(c.n, gradient, values.memory.data(),
                                         {grad_x.data(), e, in}, {}, kThreads,
                                         room(transposed, cpu::Op::kGradInput));
  forward.sparse_conv2d_grad_weight<S>(c.n, from, gradient, grad_values.data(), kThreads,
                                       room(forward, cpu::Op::kGradWeight));
  const double precision = sizeof(S) == 8 ? 1e-13 : 3e-6;
  compare("y", y, right.y, precision);
  compare("grad_x", grad_x, right.grad_x, precision);
  compare("grad_values", grad_values, right.grad_values, precision);
  workspace.assign(transposed.backward_workspace_bytes(forward, c.n, kThreads, false), 0);
  transposed.sparse_conv2d_backward<S>(forward, c.n, gradient, values.memory.data(),
                                       {grad_x.data(), e, in}, {}, from, grad_values.data(),
                                       kThreads, workspace.data());
  compare("grad_x of both", grad_x, right.grad_x, precision);
  compare("grad_values of both", grad_values, right.grad_values, precision);
  if constexpr (sizeof(E) == sizeof(S)) {
    workspace.assign(cpu::channel_sums_workspace(c.n, s.out_channels), 0);
    cpu::channel_sums<S>(c.n, s.out_channels, s.out_height, s.out_width, grad_y.memory.data(), out,
                         grad_bias.data(), kThreads, workspace.data());
    compare("grad_bias", grad_bias, right.grad_bias, precision);
  }
  return true;
}

void check_case(const Case& c) {
  std::string done;
  const std::pair<Lanes, const char*> all[] = {
      {Lanes::kPlane, "plane"}, {Lanes::kRow, "row"}, {Lanes::kBatch, "batch"}};
  for (const auto& [lanes, name] : all) {
    bool applies = true;
    for (const bool last : {false, true}) {
      applies = check_passes<float, float>(c, lanes, last);
      if (applies) check_passes<float, uint16_t>(c, lanes, last);
      if (lanes != Lanes::kRow) check_passes<double, double>(c, lanes, last);
    }
    if (applies) done += std::string(" ") + name;
  }
  std::printf("%-26s lanes%s\n", c.name, done.c_str());
}

}  // namespace

bool check_rewire();  // portable_check_rewire.cpp

int main() {
  for (const std::string& isa : cpu::available_isas()) {
    require_ok(cpu::set_isa(isa));
    std::printf("%s: vectors of %d bytes, %d threads\n", isa.c_str(),
                cpu::kernels().limits.vector_bytes, kThreads);
    for (const Case& c : kCases) check_case(c);
  }
  require(check_rewire(), "the rewire");
  std::printf(failures ? "%d WRONG\n" : "all right\n", failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
