package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor"
)

// layers makes n layer folders, each with a file of its own and a file `top`
// that says which is uppermost.
func layers(t *testing.T, base string, n int) (lower []string) {
	t.Helper()
	for i := range n {
		dir := filepath.Join(base, fmt.Sprint("layer", i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{fmt.Sprint("file", i): "x", "top": fmt.Sprint(i)} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		lower = append(lower, dir)
	}
	return lower
}

func TestMountRootfs(t *testing.T) {
	testutil.RequireRoot(t)
	for name, mount := range map[string]func(string, monitor.Rootfs, string) error{
		"any": mountRootfs, "fsopen": mountByFsopen, "options": mountByOptions,
	} {
		for _, tt := range []struct {
			name     string
			layers   int
			base     string
			writable bool
		}{
			{"one", 1, "a", true},
			{"ten", 10, "a", true},
			{"read-only one", 1, "a", false},
			{"read-only ten", 10, "a", false},
			// More than mount(2) has room for with whole paths.
			{"hundred", 100, "a/" + strings.Repeat("b", 60), true},
			{"odd names", 3, `a:b,c\d`, true},
		} {
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				dir, err := os.MkdirTemp("", "rootfs")
				if err != nil {
					t.Fatal(err)
				}
				defer os.RemoveAll(dir)
				r := monitor.Rootfs{Lower: layers(t, filepath.Join(dir, tt.base), tt.layers), Volatile: true}
				if tt.writable {
					r.Upper, r.Work = filepath.Join(dir, tt.base, "upper"), filepath.Join(dir, tt.base, "work")
					for _, d := range []string{r.Upper, r.Work} {
						if err := os.Mkdir(d, 0o755); err != nil {
							t.Fatal(err)
						}
					}
				}
				at := filepath.Join(dir, "rootfs")
				if err := os.MkdirAll(at, 0o700); err != nil {
					t.Fatal(err)
				}
				err = mount(at, r, "")
				if lone := tt.layers == 1 && !tt.writable; lone && name != "any" && errors.Is(err, unix.EINVAL) {
					return // overlayfs needs two without an upper one; "any" has a way around it
				}
				if errors.Is(err, errOldKernel) {
					t.Skip(err)
				}
				if err != nil {
					t.Fatal(err)
				}
				defer unmountRootfs(at)
				if b, err := os.ReadFile(at + "/top"); string(b) != "0" {
					t.Errorf("uppermost layer is %q, %v, want 0", b, err)
				}
				if _, err := os.Stat(fmt.Sprint(at, "/file", tt.layers-1)); err != nil {
					t.Errorf("lowest layer: %v", err)
				}
				err = os.WriteFile(at+"/new", nil, 0o644)
				if tt.writable != (err == nil) || !tt.writable && !errors.Is(err, unix.EROFS) {
					t.Errorf("write: %v, want it to work: %v", err, tt.writable)
				}
				if err := unmountRootfs(at); err != nil {
					t.Error(err)
				}
				if err := unmountRootfs(at); err != nil {
					t.Errorf("unmount again = %v, want nil", err)
				}
			})
		}
	}
}

func TestMountRootfsErrors(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	lower := layers(t, dir, 1)
	for _, tt := range []struct {
		name string
		r    monitor.Rootfs
		kind errkind.Kind
		want string
	}{
		{"none", monitor.Rootfs{}, errkind.Invalid, "no lower layer"},
		{"no work", monitor.Rootfs{Lower: lower, Upper: "/x"}, errkind.Invalid, "work"},
		{"absent layer", monitor.Rootfs{Lower: []string{lower[0], dir + "/absent"}}, errkind.Other, dir + "/absent"},
		{"absent bind", monitor.Rootfs{Lower: []string{dir + "/absent"}}, errkind.Other, dir + "/absent"},
	} {
		at := filepath.Join(dir, "rootfs")
		err := mountRootfs(at, tt.r, "")
		if err == nil || errkind.Of(err) != tt.kind || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v (%v), want %v with %q", tt.name, err, errkind.Of(err), tt.kind, tt.want)
		}
		if _, err := os.Lstat(at); !os.IsNotExist(err) {
			t.Errorf("%s: the mount point is left", tt.name)
		}
	}
}
