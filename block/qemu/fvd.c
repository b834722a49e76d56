/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Stub: proves that the driver reaches QEMU's programs. */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "qemu/module.h"
#include "trace.h"
#include "fvd/fvd.h"

static int fvd_bdrv_probe(const uint8_t *buf, int buf_size, const char *filename)
{
    return 0;
}

static BlockDriver bdrv_fvd = {
    .format_name = "fvd",
    .is_format = true,
    .bdrv_probe = fvd_bdrv_probe,
};

static void bdrv_fvd_init(void)
{
    bdrv_register(&bdrv_fvd);
}

block_init(bdrv_fvd_init);
