/* The CUDA runtime as the host code of a CuTe DSL function calls it, for a machine without a GPU. Every
   launch goes to a callback. The signatures are those of the symbols that an exported object leaves
   undefined (nvidia-cutlass-dsl 4.8). The names are too, but with "em" in place of "cu" (host.py says
   why). */
#include <stddef.h>
#include <stdint.h>

typedef int (*launch_callback)(const void *config, const void *kernel, void **arguments);
typedef int (*kernel_callback)(void **kernel, const char *name);

static launch_callback on_launch;
static kernel_callback on_kernel;

void emulator_set(launch_callback launch, kernel_callback kernel) {
  on_launch = launch;
  on_kernel = kernel;
}

int _emdaLaunchKernelEx(const void *config, const void *kernel, void **arguments) {
  return on_launch(config, kernel, arguments);
}

int _emdaLibraryGetKernel(void **kernel, void *library, const char *name) {
  (void)library;
  return on_kernel(kernel, name);
}

int _emdaLibraryLoadData(void **library, const void *code, void *a, void *b, unsigned c, void *d,
                         void *e, unsigned f) {
  (void)code, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
  *library = (void *)1;
  return 0;
}

int _emdaLibraryUnload(void *library) { return (void)library, 0; }
int _emdaGetDevice(int *device) { return *device = 0; }
int _emdaGetDeviceCount(int *count) { return *count = 1, 0; }

int _emdaDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  *value = attribute == 97 ? 232448 : 0; /* cudaDevAttrMaxSharedMemoryPerBlockOptin */
  return 0;
}

int _emKernelGetAttribute(int *value, int attribute, const void *kernel, int device) {
  (void)attribute, (void)kernel, (void)device;
  return *value = 0;
}

/* Kernels are numbered from 1 (host.py); those whose clusters may have more than 8 CTAs. */
#define KERNELS 1024
static char large_clusters[KERNELS];

int emulator_large_clusters(uintptr_t kernel) {
  return kernel < KERNELS && large_clusters[kernel];
}

int _emdaFuncSetAttribute(const void *kernel, int attribute, int value) {
  /* cudaFuncAttributeNonPortableClusterSizeAllowed */
  if (attribute == 14 && (uintptr_t)kernel < KERNELS) large_clusters[(uintptr_t)kernel] = value != 0;
  return 0;
}

int _emdaKernelSetAttributeForDevice(const void *kernel, int attribute, int value, int device) {
  (void)device;
  return _emdaFuncSetAttribute(kernel, attribute, value);
}

/* Three symbols of the DSL's own run-time library are needed too. */

int emda_dialect_init_library_once(void **slot, int (*init)(void **),
                                   int (*load_to_device)(void **, int), void *set_error) {
  (void)set_error;
  if (*slot == NULL) {
    void *library = NULL;
    int error = init(&library);
    if (error == 0) error = load_to_device(&library, 0);
    if (error != 0) return error;
    *slot = library;
  }
  return 0;
}

int emda_dialect_unload_library_once(void **slot, void *unload) { return (void)slot, (void)unload, 0; }
void EmteDSLRT_TVMFFISetRaisedCudaError(int error) { (void)error; }
