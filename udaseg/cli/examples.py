"""The examples in the help of each command."""

EXAMPLES = {
    "init": (
        "udaseg init my_city images/ labels/",
        "udaseg init my_city images/ annotations/instances.json",
    ),
    "prepare": (
        "udaseg prepare gta5 cityscapes",
        "udaseg prepare my_city.yaml --check-only",
        "udaseg prepare cityscapes --cache 1024x512",
    ),
    "tile": ("udaseg tile recipes/datasets/potsdam.yaml potsdam_tiles/",),
    "train": (
        "udaseg train",
        "udaseg train --source my_city.yaml --steps 20000",
        "udaseg train toyland/source_only --seeds 0,1,2",
    ),
    "adapt": (
        "udaseg adapt --method rccr",
        "udaseg adapt --source my_city.yaml --target photos/ --network light",
        "udaseg adapt gta5_cityscapes/rccr optimizer.lr=1e-4 --dry-run",
        "udaseg adapt --resume runs/gta5-cityscapes-rccr-s0",
    ),
    "eval": (
        "udaseg eval runs/gta5-cityscapes-rccr-s0",
        "udaseg eval runs/gta5-cityscapes-rccr-s0 --data acdc,bdd100k --format csv",
        "udaseg eval --predictions masks/ids --data cityscapes",
    ),
    "predict": (
        "udaseg predict photos/",
        "udaseg predict drive.mp4 --checkpoint runs/gta5-cityscapes-rccr-s0 --save overlay",
        "udaseg predict 'photos/**/*.jpg' -o masks --save ids,confidence --resume",
    ),
    "sweep": (
        "udaseg sweep rccr optimizer.lr=1e-4,3e-4 --seeds 0,1",
        "udaseg sweep source_only dacs rccr --source gta5 --target cityscapes",
    ),
    "table": (
        "udaseg table runs/source_only runs/rccr --baseline runs/source_only",
        "udaseg table runs/sweep --format latex",
    ),
    "report": (
        "udaseg report runs/gta5-cityscapes-rccr-s0",
        "udaseg report runs/rccr --baseline runs/source_only --out report.html",
    ),
    "grid": ("udaseg grid runs/source_only runs/rccr --titles 'source only,RCCR' --images 6",),
    "features": ("udaseg features runs/gta5-cityscapes-rccr-s0 --images 100",),
    "calibrate": ("udaseg calibrate runs/gta5-cityscapes-rccr-s0 --on pseudo",),
    "doctor": (
        "udaseg doctor gta5",
        "udaseg doctor my_city.yaml --target photos/",
    ),
    "select": (
        "udaseg select runs/gta5-cityscapes-rccr-s0",
        "udaseg select runs/rccr runs/dacs --data photos/ --format json",
    ),
    "export": (
        "udaseg export runs/gta5-cityscapes-rccr-s0 --argmax",
        "udaseg export runs/gta5-cityscapes-rccr-s0 --format state-dict -o weights.safetensors",
    ),
    "info": ("udaseg info runs/gta5-cityscapes-rccr-s0",),
    "verify": ("udaseg verify runs/gta5-cityscapes-rccr-s0",),
    "import": ("udaseg import checkpoint.pth --classes cityscapes -o runs/released",),
    "demo": ("udaseg demo --seed 1 -o runs/demo-1",),
    "methods": ("udaseg methods", "udaseg methods --format json"),
    "recipes ls": ("udaseg recipes ls", "udaseg recipes ls gta5_cityscapes"),
    "recipes cat": ("udaseg recipes cat gta5_cityscapes/rccr", "udaseg recipes cat networks/light"),
    "recipes cp": ("udaseg recipes cp gta5_cityscapes/rccr my_recipe.yaml",),
    "recipes schema": ("udaseg recipes schema > recipe.schema.json",),
    "datasets ls": ("udaseg datasets ls", "udaseg datasets ls --format json"),
}
"""Commands to copy, by the words of the command."""
