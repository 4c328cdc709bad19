#include "cpu/dispatch.h"

#include <sys/syscall.h>
#include <unistd.h>

#if DSR_AMX || DSR_AVX512_BF16
#include <cpuid.h>
#endif

#include <cstdlib>

namespace dsr::cpu {

namespace portable {
extern const KernelTable table;
}
#if DSR_X86
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
#endif

namespace {

#if DSR_AMX || DSR_AVX512_BF16
// The table of a processor that has a matrix unit besides AVX-512: AVX-512's, whose plans may use
// that unit.
KernelTable table_with(const char* name, MatrixUnit unit) {
  KernelTable table = avx512::table;
  table.name = name;
  table.limits.matrix_unit = unit;
  return table;
}
#endif

#if DSR_AVX512_BF16
bool has_dot_products() {
#if defined(DSR_EMULATE_AVX512)
  return true;
#else
  constexpr unsigned kBFloat16 = 1u << 5;  // of leaf 7.1's eax
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kBFloat16);
#endif
}

const KernelTable& dot_products_table() {
  static const KernelTable table = table_with("avx512_bf16", MatrixUnit::kDotProducts);
  return table;
}
#endif

#if DSR_AMX
// Whether the processor multiplies tiles of bfloat16, and the kernel lets this process use them:
// the state of the tiles is large, so Linux wants to be asked, once.
bool may_use_amx() {
  constexpr unsigned kBFloat16 = 1u << 22, kTile = 1u << 24;   // of leaf 7's edx
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  static const bool may = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBFloat16) && (d & kTile) &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return may;
}

const KernelTable& amx_table() {
  static const KernelTable table = table_with("amx", MatrixUnit::kAmx);
  return table;
}
#endif

const KernelTable* find(const std::string& name) {
  if (name == "portable") return &portable::table;
#if DSR_X86
  __builtin_cpu_init();
  if (name == "avx2" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return &avx2::table;
#if defined(DSR_EMULATE_AVX512)
  if (name == "avx512" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return &avx512::table;
#else
  if (name == "avx512" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return &avx512::table;
#if DSR_AMX
  if (name == "amx" && find("avx512") && may_use_amx()) return &amx_table();
#endif
#endif
#if DSR_AVX512_BF16
  if (name == "avx512_bf16" && find("avx512") && has_dot_products()) return &dot_products_table();
#endif
#endif
  return nullptr;
}

struct Choice {
  const KernelTable* table = nullptr;
  Status status;
};

Status unavailable(const std::string& source, const std::string& name) {
  std::string all;
  for (const std::string& isa : available_isas()) all += (all.empty() ? "" : ", ") + isa;
  return Status::error(source + " asks for '" + name +
                       "', but this processor and build have: " + all);
}

// The best one that this processor has. Intel's add dot products of bfloat16 at a quarter of the
// pace of float32's multiply-adds, which is half as many products; so there they run when asked
// for.
std::string default_isa() {
  std::vector<std::string> names = available_isas();
#if DSR_AVX512_BF16
  if (names.back() == "avx512_bf16" && __builtin_cpu_is("intel")) names.pop_back();
#endif
  return names.back();
}

Choice& choice() {
  static Choice chosen = [] {
    Choice c;
    const char* wanted = std::getenv("DSR_CPU_ISA");
    if (wanted && *wanted) {
      c.table = find(wanted);
      if (!c.table) c.status = unavailable("the environment variable DSR_CPU_ISA", wanted);
    }
    if (!c.table) c.table = find(default_isa());
    return c;
  }();
  return chosen;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const char* name : {"portable", "avx2", "avx512", "avx512_bf16", "amx"})
    if (find(name)) names.push_back(name);
  return names;
}

Status active_isa(std::string* name) {
  *name = choice().table->name;
  return choice().status;
}

Status set_isa(const std::string& name) {
  const KernelTable* table = find(name);
  if (!table) return unavailable("set_isa", name);
  choice() = {table, Status::ok()};
  return Status::ok();
}

const KernelTable& kernels() { return *choice().table; }

const Caches& caches() {
  static const Caches sizes = [] {
    const int64_t l1 = sysconf(_SC_LEVEL1_DCACHE_SIZE), l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return Caches{l1 > 0 ? l1 : 32 << 10, l2 > 0 ? l2 : 512 << 10};
  }();
  return sizes;
}

}  // namespace dsr::cpu
