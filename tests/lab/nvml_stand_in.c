// SPDX-License-Identifier: Apache-2.0
/*
 * A stand-in for NVIDIA's libnvidia-ml.so.1, for machines without a GPU.
 *
 * The unmodified nvidia-ml-py (module pynvml) loads this library and sees the simulated machine that the
 * directory $SIMULATED_GPU_DIR (default /run/simulated-gpus) describes:
 *
 *   gpus/<index>     key=value lines: uuid, name, total_mib, reserved_mib, util, mig,
 *                    error (an nvmlReturn_t that every call on this GPU then answers),
 *                    memory_error (the same of calls that ask for its memory), shown_mib (a total to show instead)
 *   gpus/<index>.<n> the same of a MIG device of GPU <index>, if that says mig=1
 *   alloc/<name>     "gpu=<uuid>" and "mib=<n>" lines: memory that a process has taken.
 *                    Counts only while some process holds flock(LOCK_EX) on the file.
 *   driver_version, cuda_version, init_error     optional, one line each
 *
 * A file lock crosses containers that bind-mount the directory, and the kernel drops it when its holder dies,
 * SIGKILL included: memory comes back as it does on a real GPU. Nothing is cached, each call reads the
 * directory, so that a test can change the machine under a running gateway.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* nvmlReturn_t, as far as it is answered here. */
enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NO_PERMISSION = 4,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_TIMEOUT = 10,
    NVML_ERROR_GPU_IS_LOST = 15,
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_ERROR_UNKNOWN = 999,
};

#define API __attribute__((visibility("default")))
#define MAX_GPUS 64
#define MAX_PARTS 8
#define MIB_SHIFT 20
#define NO_MIG_INSTANCE 0xffffffffu

typedef unsigned long long u64;

/* The layouts are those of nvml.h. */
struct memory_v1 {
    u64 total;
    u64 free;
    u64 used;
};

struct memory_v2 {
    unsigned version;
    u64 total;
    u64 reserved;
    u64 free;
    u64 used;
};

struct utilization {
    unsigned gpu;
    unsigned memory;
};

struct process_info {
    unsigned pid;
    u64 used_bytes;
    unsigned gpu_instance;
    unsigned compute_instance;
};

/* What one file in gpus/ says. */
struct gpu {
    unsigned index;
    char text[2048];
    char uuid[128];
};

/* A device handle is the address of its slot: stable for the life of the process, as in the real library. */
static char slots[MAX_GPUS];
static char part_slots[MAX_GPUS * MAX_PARTS];

/* NVML counts its initialisations. */
static int initialised;

/* ---- reading the directory ---- */

static void path_of(char *path, const char *name)
{
    const char *root = getenv("SIMULATED_GPU_DIR");

    if (root == NULL || *root == '\0')
        root = "/run/simulated-gpus";
    snprintf(path, PATH_MAX, "%s/%s", root, name);
}

static bool read_descriptor(int descriptor, char *text, size_t size)
{
    ssize_t length = read(descriptor, text, size - 1);

    if (length < 0)
        return false;
    text[length] = '\0';
    return true;
}

static bool read_text(const char *name, char *text, size_t size)
{
    char path[PATH_MAX];
    int descriptor;
    bool done;

    path_of(path, name);
    descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return false;
    done = read_descriptor(descriptor, text, size);
    close(descriptor);
    return done;
}

/* Copies the value of the line "key=value"; an empty value when there is no such line. */
static bool find_field(const char *text, const char *key, char *value, size_t size)
{
    size_t key_length = strlen(key);
    const char *line = text;

    value[0] = '\0';
    while (line != NULL && *line != '\0') {
        if (strncmp(line, key, key_length) == 0 && line[key_length] == '=') {
            const char *start = line + key_length + 1;

            snprintf(value, size, "%.*s", (int)strcspn(start, "\n"), start);
            return true;
        }
        line = strchr(line, '\n');
        if (line != NULL)
            line++;
    }
    return false;
}

static u64 find_number(const char *text, const char *key, u64 otherwise)
{
    char value[64];

    if (!find_field(text, key, value, sizeof value))
        return otherwise;
    return strtoull(value, NULL, 10);
}

static bool is_initialised(void)
{
    return __atomic_load_n(&initialised, __ATOMIC_SEQ_CST) > 0;
}

/* Fills in `gpu` even when the answer is the error that its file asks for. */
static int read_file(const char *name, unsigned index, struct gpu *gpu)
{
    if (!is_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (index >= MAX_GPUS || !read_text(name, gpu->text, sizeof gpu->text))
        return NVML_ERROR_INVALID_ARGUMENT;
    gpu->index = index;
    find_field(gpu->text, "uuid", gpu->uuid, sizeof gpu->uuid);
    return (int)find_number(gpu->text, "error", NVML_SUCCESS);
}

static int read_gpu(unsigned index, struct gpu *gpu)
{
    char name[32];

    snprintf(name, sizeof name, "gpus/%u", index);
    return read_file(name, index, gpu);
}

static int read_part(unsigned index, unsigned number, struct gpu *gpu)
{
    char name[32];

    snprintf(name, sizeof name, "gpus/%u.%u", index, number);
    return read_file(name, index, gpu);
}

static int read_device(void *device, struct gpu *gpu)
{
    char *slot = device;

    if (slot >= part_slots && slot < part_slots + sizeof part_slots) {
        unsigned offset = (unsigned)(slot - part_slots);

        return read_part(offset / MAX_PARTS, offset % MAX_PARTS, gpu);
    }
    if (slot < slots || slot >= slots + MAX_GPUS)
        return NVML_ERROR_INVALID_ARGUMENT;
    return read_gpu((unsigned)(slot - slots), gpu);
}

static int copy_text(const char *value, char *out, unsigned size)
{
    if (strlen(value) + 1 > size)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(out, value);
    return NVML_SUCCESS;
}

static int copy_system_text(const char *name, const char *otherwise, char *out, unsigned size)
{
    char text[256];

    if (!is_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (!read_text(name, text, sizeof text))
        return copy_text(otherwise, out, size);
    text[strcspn(text, "\n")] = '\0';
    return copy_text(text, out, size);
}

static int copy_device_text(void *device, const char *key, char *out, unsigned size)
{
    struct gpu gpu;
    char value[256];
    int result = read_device(device, &gpu);

    if (result != NVML_SUCCESS)
        return result;
    if (!find_field(gpu.text, key, value, sizeof value))
        return NVML_ERROR_NOT_SUPPORTED;
    return copy_text(value, out, size);
}

/* ---- memory that processes have taken ---- */

/* The pid, as this process's pid namespace knows it, that holds the exclusive flock; 0 when it is not visible. */
static unsigned lock_holder(const struct stat *file)
{
    FILE *locks = fopen("/proc/locks", "re");
    char line[256];
    unsigned holder = 0;

    if (locks == NULL)
        return 0;
    while (holder == 0 && fgets(line, sizeof line, locks) != NULL) {
        char kind[16];
        char mode[16];
        unsigned pid;
        unsigned device_major;
        unsigned device_minor;
        unsigned long inode;
        int found = sscanf(line, "%*d: %15s %*s %15s %u %x:%x:%lu", kind, mode, &pid, &device_major, &device_minor,
                           &inode);

        if (found != 6 || strcmp(kind, "FLOCK") != 0 || strcmp(mode, "WRITE") != 0)
            continue;
        if (inode == file->st_ino && device_major == major(file->st_dev) && device_minor == minor(file->st_dev))
            holder = pid;
    }
    fclose(locks);
    return holder;
}

static bool is_held(int descriptor)
{
    return flock(descriptor, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

typedef void visitor(void *context, unsigned pid, u64 mib);

static void visit_allocation(int descriptor, const char *uuid, visitor *visit, void *context)
{
    char text[1024];
    char allocated_on[128];
    struct stat file;

    if (!is_held(descriptor) || !read_descriptor(descriptor, text, sizeof text))
        return;
    find_field(text, "gpu", allocated_on, sizeof allocated_on);
    if (strcmp(allocated_on, uuid) != 0 || fstat(descriptor, &file) != 0)
        return;
    visit(context, lock_holder(&file), find_number(text, "mib", 0));
}

static void visit_allocations(const char *uuid, visitor *visit, void *context)
{
    char path[PATH_MAX];
    DIR *directory;
    struct dirent *entry;

    path_of(path, "alloc");
    directory = opendir(path);
    if (directory == NULL)
        return;
    while ((entry = readdir(directory)) != NULL) {
        int descriptor;

        if (entry->d_name[0] == '.')
            continue;
        descriptor = openat(dirfd(directory), entry->d_name, O_RDONLY | O_CLOEXEC);
        if (descriptor < 0)
            continue;
        visit_allocation(descriptor, uuid, visit, context);
        close(descriptor);
    }
    closedir(directory);
}

static void add_to_sum(void *context, unsigned pid, u64 mib)
{
    u64 *sum = context;

    (void)pid;
    *sum += mib;
}

/* In `used`, what processes have taken; what the driver reserves for itself stands apart. */
static struct memory_v2 measure(const struct gpu *gpu)
{
    struct memory_v2 memory = {0};
    u64 taken_mib = 0;

    visit_allocations(gpu->uuid, add_to_sum, &taken_mib);
    memory.total = find_number(gpu->text, "shown_mib", find_number(gpu->text, "total_mib", 0)) << MIB_SHIFT;
    memory.reserved = find_number(gpu->text, "reserved_mib", 0) << MIB_SHIFT;
    memory.used = taken_mib << MIB_SHIFT;
    if (memory.total > memory.reserved + memory.used)
        memory.free = memory.total - memory.reserved - memory.used;
    return memory;
}

struct process_list {
    struct process_info *items;
    unsigned capacity;
    unsigned count;
};

static void add_to_list(void *context, unsigned pid, u64 mib)
{
    struct process_list *list = context;

    if (list->count < list->capacity) {
        struct process_info *item = &list->items[list->count];

        item->pid = pid;
        item->used_bytes = mib << MIB_SHIFT;
        item->gpu_instance = NO_MIG_INSTANCE;
        item->compute_instance = NO_MIG_INSTANCE;
    }
    list->count++;
}

/* ---- the library: start, stop, errors ---- */

API int nvmlInitWithFlags(unsigned flags)
{
    char text[64];
    char path[PATH_MAX];
    struct stat directory;

    (void)flags;
    if (read_text("init_error", text, sizeof text) && atoi(text) != NVML_SUCCESS)
        return atoi(text);
    path_of(path, "gpus");
    if (stat(path, &directory) != 0)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    __atomic_add_fetch(&initialised, 1, __ATOMIC_SEQ_CST);
    return NVML_SUCCESS;
}

API int nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

API int nvmlShutdown(void)
{
    if (!is_initialised())
        return NVML_ERROR_UNINITIALIZED;
    __atomic_sub_fetch(&initialised, 1, __ATOMIC_SEQ_CST);
    return NVML_SUCCESS;
}

API const char *nvmlErrorString(int result)
{
    switch (result) {
    case NVML_SUCCESS:
        return "The operation was successful";
    case NVML_ERROR_UNINITIALIZED:
        return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT:
        return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED:
        return "Not Supported";
    case NVML_ERROR_NO_PERMISSION:
        return "Insufficient Permissions";
    case NVML_ERROR_NOT_FOUND:
        return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE:
        return "Insufficient Size";
    case NVML_ERROR_DRIVER_NOT_LOADED:
        return "Driver Not Loaded";
    case NVML_ERROR_TIMEOUT:
        return "Timeout";
    case NVML_ERROR_GPU_IS_LOST:
        return "GPU is lost";
    case NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "Driver/library version mismatch";
    case NVML_ERROR_ARGUMENT_VERSION_MISMATCH:
        return "Argument version mismatch";
    default:
        return "Unknown Error";
    }
}

/* ---- the machine ---- */

API int nvmlSystemGetDriverVersion(char *version, unsigned size)
{
    return copy_system_text("driver_version", "580.95.05", version, size);
}

API int nvmlSystemGetNVMLVersion(char *version, unsigned size)
{
    return copy_system_text("nvml_version", "13.580.95.05", version, size);
}

API int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    char text[32];
    int result = copy_system_text("cuda_version", "13000", text, sizeof text);

    if (result == NVML_SUCCESS)
        *version = atoi(text);
    return result;
}

API int nvmlSystemGetCudaDriverVersion(int *version)
{
    return nvmlSystemGetCudaDriverVersion_v2(version);
}

API int nvmlDeviceGetCount_v2(unsigned *count)
{
    struct gpu gpu;

    if (!is_initialised())
        return NVML_ERROR_UNINITIALIZED;
    *count = 0;
    /* A GPU whose file asks for an error is still one of the machine's. */
    while (*count < MAX_GPUS && read_gpu(*count, &gpu) != NVML_ERROR_INVALID_ARGUMENT)
        (*count)++;
    return NVML_SUCCESS;
}

API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device)
{
    struct gpu gpu;
    int result = read_gpu(index, &gpu);

    if (result == NVML_SUCCESS)
        *device = &slots[index];
    return result;
}

API int nvmlDeviceGetHandleByUUID(const char *uuid, void **device)
{
    struct gpu gpu;
    unsigned count;
    int result = nvmlDeviceGetCount_v2(&count);

    if (result != NVML_SUCCESS)
        return result;
    for (unsigned index = 0; index < count; index++) {
        result = read_gpu(index, &gpu);
        if (strcmp(gpu.uuid, uuid) != 0)
            continue;
        *device = &slots[index];
        return result;
    }
    return NVML_ERROR_NOT_FOUND;
}

/* ---- one GPU ---- */

API int nvmlDeviceGetUUID(void *device, char *uuid, unsigned size)
{
    return copy_device_text(device, "uuid", uuid, size);
}

API int nvmlDeviceGetName(void *device, char *name, unsigned size)
{
    return copy_device_text(device, "name", name, size);
}

API int nvmlDeviceGetIndex(void *device, unsigned *index)
{
    struct gpu gpu;
    int result = read_device(device, &gpu);

    if (result == NVML_SUCCESS)
        *index = gpu.index;
    return result;
}

API int nvmlDeviceGetMinorNumber(void *device, unsigned *number)
{
    return nvmlDeviceGetIndex(device, number);
}

static int read_memory(void *device, struct gpu *gpu)
{
    int result = read_device(device, gpu);

    return result == NVML_SUCCESS ? (int)find_number(gpu->text, "memory_error", NVML_SUCCESS) : result;
}

/* Version 1 counts what the driver reserves as used, version 2 lists it apart: as drivers from 510 on do. */
API int nvmlDeviceGetMemoryInfo(void *device, struct memory_v1 *memory)
{
    struct gpu gpu;
    struct memory_v2 measured;
    int result = read_memory(device, &gpu);

    if (result != NVML_SUCCESS)
        return result;
    measured = measure(&gpu);
    memory->total = measured.total;
    memory->free = measured.free;
    memory->used = measured.total - measured.free;
    return NVML_SUCCESS;
}

API int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory_v2 *memory)
{
    struct gpu gpu;
    const unsigned version = (2u << 24) | sizeof *memory;
    int result;

    if (memory->version != version)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    result = read_memory(device, &gpu);
    if (result != NVML_SUCCESS)
        return result;
    *memory = measure(&gpu);
    memory->version = version;
    return NVML_SUCCESS;
}

/* Asked with too little room (or none), NVML answers how many there are and "Insufficient Size". */
API int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process_info *processes)
{
    struct gpu gpu;
    struct process_list list = {processes, processes == NULL ? 0 : *count, 0};
    int result = read_device(device, &gpu);

    if (result != NVML_SUCCESS)
        return result;
    visit_allocations(gpu.uuid, add_to_list, &list);
    *count = list.count;
    return list.count > list.capacity ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

API int nvmlDeviceGetComputeRunningProcesses_v2(void *device, unsigned *count, struct process_info *processes)
{
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, processes);
}

API int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, struct process_info *processes)
{
    struct gpu gpu;
    int result = read_device(device, &gpu);

    (void)processes;
    if (result == NVML_SUCCESS)
        *count = 0;
    return result;
}

API int nvmlDeviceGetUtilizationRates(void *device, struct utilization *rates)
{
    struct gpu gpu;
    int result = read_device(device, &gpu);

    if (result != NVML_SUCCESS)
        return result;
    rates->gpu = (unsigned)find_number(gpu.text, "util", 0);
    rates->memory = 0;
    return NVML_SUCCESS;
}

API int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending)
{
    struct gpu gpu;
    int result = read_device(device, &gpu);
    u64 mode;

    if (result != NVML_SUCCESS)
        return result;
    mode = find_number(gpu.text, "mig", NO_MIG_INSTANCE);
    if (mode == NO_MIG_INSTANCE)
        return NVML_ERROR_NOT_SUPPORTED;
    *current = (unsigned)mode;
    *pending = (unsigned)mode;
    return NVML_SUCCESS;
}

API int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count)
{
    struct gpu gpu;
    int result = read_device(device, &gpu);

    if (result == NVML_SUCCESS)
        *count = MAX_PARTS;
    return result;
}

API int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **part)
{
    struct gpu gpu;
    int result = read_device(device, &gpu);
    unsigned whole = gpu.index;

    if (result != NVML_SUCCESS)
        return result;
    if (index >= MAX_PARTS || read_part(whole, index, &gpu) == NVML_ERROR_INVALID_ARGUMENT)
        return NVML_ERROR_NOT_FOUND;
    *part = &part_slots[whole * MAX_PARTS + index];
    return NVML_SUCCESS;
}
