"""File search: any nesting and letter case, no symlink loops, no hidden files."""

from udaseg.data.files.find import find_files


def _touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _found(folder, pattern):
    return [path.relative_to(folder).as_posix() for path in find_files(folder, pattern)]


def test_files_are_found_in_any_nesting_and_case_and_never_hidden_ones(tmp_path):
    _touch(
        tmp_path, "b.png", "a/c.PNG", "a/b/d.png", "a/._c.png", ".git/e.png", "a/.f.png", "x.txt"
    )
    assert _found(tmp_path, "**/*.png") == ["a/b/d.png", "a/c.PNG", "b.png"]
    assert _found(tmp_path, "*.png") == ["b.png"]
    assert _found(tmp_path, "a/**/*.png") == ["a/b/d.png", "a/c.PNG"]
    assert _found(tmp_path, "**/b/*.png") == ["a/b/d.png"]
    assert _found(tmp_path, "**") == ["a/b/d.png", "a/c.PNG", "b.png", "x.txt"]


def test_brackets_in_a_folder_are_no_pattern(tmp_path):
    folder = tmp_path / "dir[1]"
    _touch(folder, "a/x.png", "a[2]/y.png")
    assert _found(folder, "**/*.png") == ["a/x.png", "a[2]/y.png"]
    assert _found(folder, "a[2]/*.png") == ["a[2]/y.png"]


def test_links_in_circles_end_and_a_folder_is_read_once(tmp_path):
    _touch(tmp_path, "a/x.png", "a/b/y.png")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/self").symlink_to("self")
    (tmp_path / "z").symlink_to("a")
    assert _found(tmp_path, "**/*.png") == ["a/b/y.png", "a/x.png"]
    assert _found(tmp_path, "z/*.png") == ["z/x.png"]


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path):
    _touch(tmp_path / "disk", "x.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/images").symlink_to(tmp_path / "disk")
    assert _found(tmp_path / "data", "images/*.png") == ["images/x.png"]
