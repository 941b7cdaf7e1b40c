// SPDX-License-Identifier: Apache-2.0
// From packed camera bytes to their place in a policy's tensor, in one pass: decode, crop, resize, pad, normalise.
//
// One launch takes up to MAX_JOBS images (blockIdx.z); each block makes one tile of one output (blockIdx.x). It decodes
// the source rows that its tile needs, a few at a time, into shared memory, sums them along the columns, and at the end
// sums the results along the rows. So a pixel is decoded once per tile, however many taps use it. Crops and borders are
// part of the tables, the layout of the tensor is part of the offsets, and scale, mean, standard deviation and type are
// part of a table of 256 values per channel. The arithmetic is that of `gpu/taps.py`.
//
// A variant is chosen by: PIXELS (PACKED, YUV422, SEMI_PLANAR, BAYER), ARITHMETIC (PICK, ROUNDED, LINEAR, CUBIC, AREA),
// ELEMENT_BYTES (1, 2, 4), and by the limits MAX_JOBS and SHARED_WORDS, which gpu/preprocess.py knows too.

#define PACKED 1
#define YUV422 2
#define SEMI_PLANAR 3
#define BAYER 4

#define PICK 1
#define ROUNDED 2
#define LINEAR 3
#define CUBIC 4
#define AREA 5

#if defined(__CUDA_ARCH__)
#define THREAD_INDEX static_cast<int>(threadIdx.x)
#define THREAD_COUNT static_cast<int>(blockDim.x)
#define LANES 32
#define SYNC() __syncthreads()
#define SHARED __shared__
#define UNROLL _Pragma("unroll 4")
#elif !defined(THREAD_INDEX)  // on the host the first thread does the work of its block; a test has its own threads
#define THREAD_INDEX 0
#define THREAD_COUNT 1
#define LANES 1
#define SYNC()
#define SHARED static thread_local
#define ONE_THREAD
#endif
#ifndef __CUDA_ARCH__
#define UNROLL
#define __grid_constant__
#endif

#define DEVICE __device__ __forceinline__
#define LANE (THREAD_INDEX % LANES)
#define GROUP (THREAD_INDEX / LANES)
#define GROUPS (THREAD_COUNT / LANES)

#if ELEMENT_BYTES == 4
typedef unsigned int Element;
#elif ELEMENT_BYTES == 2
typedef unsigned short Element;
#else
typedef unsigned char Element;
#endif

#if ARITHMETIC == AREA
typedef float Number;
#else
typedef int Number;
#endif

struct Sums {
    Number red, green, blue;
};

#if ARITHMETIC == ROUNDED
typedef unsigned int Partial;  // three levels in one word
#else
typedef Sums Partial;
#endif

// One axis; see `Taps` in gpu/taps.py.
struct Axis {
    const int *first;
    const int *count;
    const Number *weights;
    const int *lines;
    const int *offsets;  // elements from the start of the target to each output line
    int size;            // output lines
    int tile;            // output lines per tile
};

// One image of a launch; gpu/plans.py packs it.
struct Job {
    const unsigned char *source;
    long long step_bytes;  // per row of the source
    Element *target;
    const Element *values;  // of every level, (3, 256), red first
    Axis rows, columns;
    int height, width;       // of the source in pixels
    int pixel[4];            // where the bytes of a pixel lie, see the functions `read_pixel`
    int channel_offsets[3];  // elements from red to red, green and blue, or the other way round
    int repeats;             // how often the image stands in the tensor
    int repeat_offset;       // elements between two of them
    int border;              // level
    int shift;               // ROUNDED: bits of the weights behind the point
    float bias, scale;       // AREA: applied to the sum
    int padding;             // the size is a multiple of 8
};

struct Batch {
    Job jobs[MAX_JOBS];
};

DEVICE int clip(int value) { return min(max(value, 0), 255); }

DEVICE unsigned int pack(int red, int green, int blue) {
    return static_cast<unsigned int>(red | green << 8 | blue << 16);
}

DEVICE Sums unpack(unsigned int pixel) {
    const Sums levels = {static_cast<Number>(pixel & 255), static_cast<Number>(pixel >> 8 & 255),
                         static_cast<Number>(pixel >> 16)};
    return levels;
}

#if PIXELS == PACKED

// pixel: bytes per pixel; byte of red, green, blue.
DEVICE unsigned int read_pixel(const Job &job, int y, int x) {
    const unsigned char *bytes = job.source + y * job.step_bytes + x * job.pixel[0];
    return pack(__ldg(bytes + job.pixel[1]), __ldg(bytes + job.pixel[2]), __ldg(bytes + job.pixel[3]));
}

#elif PIXELS == YUV422 || PIXELS == SEMI_PLANAR

// BT.601, limited range, in OpenCV's fixed point of 20 bits.
DEVICE unsigned int from_yuv(int luma, int u, int v) {
    const int half = 1 << 19, y = max(luma - 16, 0) * 1220542;
    u -= 128;
    v -= 128;
    const int red = (y + half + 1673527 * v) >> 20;
    const int green = (y + half - 852492 * v - 409993 * u) >> 20;
    const int blue = (y + half + 2116026 * u) >> 20;
    return pack(clip(red), clip(green), clip(blue));
}

#if PIXELS == YUV422
// pixel: byte of the first luma, of U and of V in the four bytes of two pixels.
DEVICE unsigned int read_pixel(const Job &job, int y, int x) {
    const unsigned char *pair = job.source + y * job.step_bytes + (x >> 1) * 4;
    return from_yuv(__ldg(pair + job.pixel[0] + (x & 1) * 2), __ldg(pair + job.pixel[1]), __ldg(pair + job.pixel[2]));
}
#else
// pixel: 0; byte of U and of V in the two chroma bytes of a block.
DEVICE unsigned int read_pixel(const Job &job, int y, int x) {
    const unsigned char *luma = job.source + y * job.step_bytes + x;
    const unsigned char *chroma = job.source + (job.height + (y >> 1)) * job.step_bytes + (x & ~1);
    return from_yuv(__ldg(luma), __ldg(chroma + job.pixel[1]), __ldg(chroma + job.pixel[2]));
}
#endif

#else

// pixel: row and column of the first red site. Bilinear as in OpenCV, whose outermost pixels repeat their neighbours.
DEVICE unsigned int read_pixel(const Job &job, int y, int x) {
    y = min(max(y, 1), job.height - 2);
    x = min(max(x, 1), job.width - 2);
    const unsigned char *row = job.source + y * job.step_bytes + x;
    const unsigned char *above = row - job.step_bytes, *below = row + job.step_bytes;
    const int here = __ldg(row);
    const int up_down = __ldg(above) + __ldg(below), left_right = __ldg(row - 1) + __ldg(row + 1);
    const bool in_red_row = ((y ^ job.pixel[0]) & 1) == 0, in_red_column = ((x ^ job.pixel[1]) & 1) == 0;
    if (in_red_row != in_red_column) {
        const int across = (left_right + 1) >> 1, along = (up_down + 1) >> 1;
        return in_red_row ? pack(across, here, along) : pack(along, here, across);
    }
    const int green = (up_down + left_right + 2) >> 2;
    const int corners = __ldg(above - 1) + __ldg(above + 1) + __ldg(below - 1) + __ldg(below + 1);
    const int other = (corners + 2) >> 2;
    return in_red_row ? pack(here, green, other) : pack(other, green, here);
}

#endif

// Puts one pixel into the tensor.
DEVICE void write_pixel(const Job &job, int y, int x, unsigned int pixel) {
    Element *target = job.target + __ldg(job.rows.offsets + y) + __ldg(job.columns.offsets + x);
    for (int channel = 0; channel < 3; ++channel) {
        const Element value = __ldg(job.values + 256 * channel + (pixel >> 8 * channel & 255));
        for (int repeat = 0; repeat < job.repeats; ++repeat)
            target[job.channel_offsets[channel] + repeat * job.repeat_offset] = value;
    }
}

#if ARITHMETIC != PICK

// What a sum along the columns is kept as, and what pixel a sum along the rows is.
#if ARITHMETIC == ROUNDED
DEVICE unsigned int finish_rows(const Job &job, const Sums &sums) {
    const int half = 1 << (job.shift - 1);
    return pack(clip((sums.red + half) >> job.shift), clip((sums.green + half) >> job.shift),
                clip((sums.blue + half) >> job.shift));
}
DEVICE Partial finish_columns(const Job &job, const Sums &sums) {
    return finish_rows(job, sums);
}
#elif ARITHMETIC == LINEAR
DEVICE Partial finish_columns(const Job &, const Sums &sums) {
    const Sums kept = {sums.red >> 4, sums.green >> 4, sums.blue >> 4};
    return kept;
}
DEVICE unsigned int finish_rows(const Job &, const Sums &sums) {
    return pack(clip((sums.red + 2) >> 2), clip((sums.green + 2) >> 2), clip((sums.blue + 2) >> 2));
}
#elif ARITHMETIC == CUBIC
DEVICE Partial finish_columns(const Job &, const Sums &sums) { return sums; }
DEVICE int descale(int sum) { return clip((sum + (1 << 21)) >> 22); }
DEVICE unsigned int finish_rows(const Job &, const Sums &sums) {
    return pack(descale(sums.red), descale(sums.green), descale(sums.blue));
}
#else
DEVICE Partial finish_columns(const Job &, const Sums &sums) { return sums; }
DEVICE int round_sum(const Job &job, float sum) {
    return clip(static_cast<int>(rintf(__fmul_rn(__fadd_rn(sum, job.bias), job.scale))));
}
DEVICE unsigned int finish_rows(const Job &job, const Sums &sums) {
    return pack(round_sum(job, sums.red), round_sum(job, sums.green), round_sum(job, sums.blue));
}
#endif

// Products are rounded before they are added, as on the host: no fused multiply-add.
DEVICE Number add_product(Number sum, Number weight, Number value) {
#if ARITHMETIC == AREA
    return __fadd_rn(sum, __fmul_rn(weight, value));
#else
    return sum + weight * value;
#endif
}

DEVICE Number add_row(Number sum, Number weight, Number value) {
#if ARITHMETIC == LINEAR
    return sum + ((weight * value) >> 16);
#else
    return add_product(sum, weight, value);
#endif
}

DEVICE Sums unpack_partial(const Partial &partial) {
#if ARITHMETIC == ROUNDED
    return unpack(partial);
#else
    return partial;
#endif
}

// Sums pixels of one source row; `pixels` begins with the tile's first source column.
DEVICE Partial sum_columns(const Job &job, const unsigned int *pixels, int x, int first_column) {
    const Axis &columns = job.columns;
    const int count = __ldg(columns.count + x);
    const Number *weights = columns.weights + x;
    pixels += __ldg(columns.first + x) - first_column;
    Sums sums = {0, 0, 0};
    UNROLL
    for (int tap = 0; tap < count; ++tap) {
        const Number weight = __ldg(weights + tap * columns.size);
        const Sums levels = unpack(pixels[tap]);
        sums.red = add_product(sums.red, weight, levels.red);
        sums.green = add_product(sums.green, weight, levels.green);
        sums.blue = add_product(sums.blue, weight, levels.blue);
    }
    return finish_columns(job, sums);
}

// Sums what is left of the source rows; `partials` begins with the tile's first source row.
DEVICE unsigned int sum_rows(const Job &job, const Partial *partials, int y, int first_row) {
    const Axis &rows = job.rows;
    const int count = __ldg(rows.count + y), tile = job.columns.tile;
    const Number *weights = rows.weights + y;
    partials += (__ldg(rows.first + y) - first_row) * tile;
    Sums sums = {0, 0, 0};
    UNROLL
    for (int tap = 0; tap < count; ++tap) {
        const Number weight = __ldg(weights + tap * rows.size);
        const Sums part = unpack_partial(partials[tap * tile]);
        sums.red = add_row(sums.red, weight, part.red);
        sums.green = add_row(sums.green, weight, part.green);
        sums.blue = add_row(sums.blue, weight, part.blue);
    }
    return finish_rows(job, sums);
}

#endif

extern "C" __global__ void __launch_bounds__(256) preprocess(const __grid_constant__ Batch batch) {
#ifdef ONE_THREAD
    if (threadIdx.x) return;
#endif
    const Job &job = batch.jobs[blockIdx.z];
    const Axis &rows = job.rows, &columns = job.columns;
    const int across = (columns.size + columns.tile - 1) / columns.tile;
    const int top = static_cast<int>(blockIdx.x) / across * rows.tile;
    const int left = static_cast<int>(blockIdx.x) % across * columns.tile;
    if (top >= rows.size) return;  // another image of the launch has more tiles
    const int bottom = min(top + rows.tile, rows.size), right = min(left + columns.tile, columns.size);

#if ARITHMETIC != PICK
    SHARED unsigned int shared[SHARED_WORDS];
    const int first_row = __ldg(rows.first + top), first_column = __ldg(columns.first + left);
    const int num_rows = __ldg(rows.first + bottom - 1) + __ldg(rows.count + bottom - 1) - first_row;
    const int num_columns = __ldg(columns.first + right - 1) + __ldg(columns.count + right - 1) - first_column;
    const int partial_words = static_cast<int>(sizeof(Partial) / sizeof(int));
    Partial *partials = reinterpret_cast<Partial *>(shared);
    unsigned int *pixels = shared + num_rows * columns.tile * partial_words;
    const int room = SHARED_WORDS - num_rows * columns.tile * partial_words;
    const int chunk = min(room / max(num_columns, 1), num_rows);

    for (int done = 0; done < num_rows; done += chunk) {
        const int end = min(chunk, num_rows - done);
        for (int row = GROUP; row < end; row += GROUPS) {
            const int y = __ldg(rows.lines + first_row + done + row);
            UNROLL
            for (int column = LANE; column < num_columns; column += LANES)
                pixels[row * num_columns + column] =
                    read_pixel(job, y, __ldg(columns.lines + first_column + column));
        }
        SYNC();
        for (int row = GROUP; row < end; row += GROUPS)
            for (int x = left + LANE; x < right; x += LANES)
                partials[(done + row) * columns.tile + x - left] =
                    sum_columns(job, pixels + row * num_columns, x, first_column);
        SYNC();
    }
#endif

    const unsigned int border = pack(job.border, job.border, job.border);
    for (int y = top + GROUP; y < bottom; y += GROUPS)
        for (int x = left + LANE; x < right; x += LANES) {
            const bool is_border = __ldg(rows.count + y) == 0 || __ldg(columns.count + x) == 0;
#if ARITHMETIC == PICK
            const int row = __ldg(rows.first + y), column = __ldg(columns.first + x);
            const unsigned int pixel =
                is_border ? border : read_pixel(job, __ldg(rows.lines + row), __ldg(columns.lines + column));
#else
            const unsigned int pixel = is_border ? border : sum_rows(job, partials + x - left, y, first_row);
#endif
            write_pixel(job, y, x, pixel);
        }
}
