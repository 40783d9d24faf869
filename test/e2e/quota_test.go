package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/testutil"
)

// diskUsage is what du says of a container's writable layer.
func diskUsage(t *testing.T, root, id string) (bytes, inodes uint64) {
	t.Helper()
	layer := filepath.Join(root, "rootfs", id)
	total := func(unit string) uint64 {
		out, err := exec.CommandContext(t.Context(), "du", "-c", unit, filepath.Join(layer, "upper"), filepath.Join(layer, "work")).CombinedOutput()
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		n, _, _ := strings.Cut(lines[len(lines)-1], "\t")
		total, nerr := strconv.ParseUint(n, 10, 64)
		if err != nil || nerr != nil {
			t.Fatalf("du: %v, %v: %s", err, nerr, out)
		}
		return total
	}
	return total("-B1"), total("--inodes")
}

// Writable layers on a file system with project quota: the figures are the kernel's,
// at once, limits hold, and containers notice nothing else of it.
func TestProjectQuota(t *testing.T) {
	for _, kind := range testutil.QuotaKinds {
		t.Run(kind, func(t *testing.T) {
			root := filepath.Join(testutil.QuotaFS(t, kind), "root")
			n := NewNode(t, NodeOptions{Config: map[string]string{
				"root": quote(root), "writable_layer_limit": strconv.Itoa(32 * mib), "writable_layer_inode_limit": "1024",
			}})
			n.PullBusybox()
			if r, err := n.Runtime.Status(n.Ctx(), &cri.StatusRequest{Verbose: true}); err != nil || !strings.Contains(r.Info["writableLayers"], "by project quota") {
				t.Errorf("Status = %v, %v, want project quota\n%s", r.GetInfo()["writableLayers"], err, n.Log())
			}
			p := n.PodConfig("quota")
			pod := n.RunPod(p)
			full := n.Run(pod, p, n.ContainerConfig("full", "sleep", "1000"))
			small := n.Run(pod, p, n.ContainerConfig("small", "sleep", "1000"))
			t.Run("figures", func(t *testing.T) { checkProjectFigures(t, n, root, full) })
			t.Run("limits", func(t *testing.T) { checkProjectLimits(t, n, full, small) })
			t.Run("user namespace", func(t *testing.T) { checkProjectUserNS(t, n, root) })
			t.Run("restart", func(t *testing.T) { checkProjectRestart(t, n, root, full) })
		})
	}
}

// changeLikeAPackageManager does what fails with EXDEV where projects are mixed.
func changeLikeAPackageManager(n *Node, id string) {
	n.T.Helper()
	n.Sh(id, `set -e; cp -a /bin /copied; mv /copied /moved; ln /moved/busybox /link; chown -R 1000:1000 /moved
		mkdir -p /a/b/c; echo x >/a/b/c/f.tmp; mv /a/b/c/f.tmp /a/b/c/f; mv /a/b /a/d; mv /a/d/c/f /etc/f
		echo x >>/etc/passwd; chmod 600 /etc/passwd; ln /etc/passwd /etc/passwd-; rm -r /moved; mkdir /moved; rm /link`)
}

func checkProjectFigures(t *testing.T, n *Node, root, id string) {
	var got, before *cri.FilesystemUsage
	settled := func() bool {
		bytes, inodes := diskUsage(t, root, id)
		got = n.containerStats(id).WritableLayer
		return got.UsedBytes.Value == bytes && got.InodesUsed.Value == inodes
	}
	changeLikeAPackageManager(n, id)
	n.Eventually("xfs has taken removed files apart, which it does in the background", settled)
	before = got
	n.Sh(id, "head -c 4194304 /dev/zero >/written; mkdir /d; touch /d/1 /d/2")
	// At once, and without a look at the files.
	got = n.containerStats(id).WritableLayer
	between(t, "bytes", got.UsedBytes, before.UsedBytes.Value+4*mib, before.UsedBytes.Value+5*mib)
	between(t, "inodes", got.InodesUsed, before.InodesUsed.Value, before.InodesUsed.Value+4)
	n.Eventually("the figures are those of du", settled)
	fs, err := n.Images.ImageFsInfo(n.Ctx(), &cri.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	containers := fs.ContainerFilesystems[0]
	if containers.FsId.Mountpoint != root || fs.ImageFilesystems[0].FsId.Mountpoint != root {
		t.Errorf("ImageFsInfo = %v, want %s, a file system of its own", fs, root)
	}
	between(t, "all containers", containers.UsedBytes, got.UsedBytes.Value, got.UsedBytes.Value+mib)
}

func checkProjectUserNS(t *testing.T, n *Node, root string) {
	r, err := n.Runtime.Status(n.Ctx(), &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !r.RuntimeHandlers[0].Features.UserNamespaces {
		t.Skip("this node has none for pods; TestUserNamespace looks at the reason")
	}
	p := usernsPod(n.PodConfig("mapped"), 100000)
	id := n.Run(n.RunPod(p), p, n.inPod(p, "main", "sleep", "1000"))
	changeLikeAPackageManager(n, id)
	n.Eventually("the figures are those of du", func() bool {
		bytes, inodes := diskUsage(t, root, id)
		got := n.containerStats(id).WritableLayer
		return got.UsedBytes.Value == bytes && got.InodesUsed.Value == inodes
	})
}

func checkProjectLimits(t *testing.T, n *Node, full, other string) {
	refused := func(id, script string) {
		t.Helper()
		r, err := n.Runtime.ExecSync(n.Ctx(), &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 60})
		if err != nil || r.ExitCode == 0 {
			t.Fatalf("%s: exit code %d, %v, want it refused", script, r.GetExitCode(), err)
		}
		// ext4 says the first, xfs the second.
		if text := string(r.Stderr); !strings.Contains(text, "quota exceeded") && !strings.Contains(text, "No space left") {
			t.Errorf("%s: %s", script, text)
		}
	}
	refused(full, "dd if=/dev/zero of=/big bs=65536 count=1024")
	between(t, "bytes at the limit", n.containerStats(full).WritableLayer.UsedBytes, 24*mib, 32*mib)
	n.Sh(full, "rm /big; head -c 1048576 /dev/zero >/again")
	refused(full, "mkdir /many; i=0; while touch /many/$i; do i=$((i+1)); done; exit 1")
	between(t, "inodes at the limit", n.containerStats(full).WritableLayer.InodesUsed, 1000, 1024)
	n.Sh(other, "head -c 1048576 /dev/zero >/f") // it has a limit of its own
	n.Sh(full, "rm -r /many")
}

func checkProjectRestart(t *testing.T, n *Node, root, id string) {
	b, err := os.ReadFile(filepath.Join(root, "rootfs", id, "rootfs.json"))
	var record struct{ Project uint32 }
	if err == nil {
		err = json.Unmarshal(b, &record)
	}
	if err != nil || record.Project == 0 {
		t.Fatalf("rootfs.json = %s, %v, want a project", b, err)
	}
	bytes, inodes := diskUsage(t, root, id)
	n.Restart()
	got := n.containerStats(id).WritableLayer
	between(t, "bytes after a restart", got.UsedBytes, bytes, bytes+mib)
	between(t, "inodes after a restart", got.InodesUsed, inodes, inodes+10)
	n.RemoveAll()
	q, err := sys.OpenProjectQuota(root)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	n.Eventually("nothing is left in the project of a removed container, no limit either", func() bool {
		u, err := q.Usage(record.Project)
		return err == nil && u == sys.ProjectUsage{}
	})
}

// A limit that the file system cannot keep to is no limit: crid says so and ends.
func TestLimitWithoutQuota(t *testing.T) {
	root := testutil.PlainFS(t, "ext4")
	n := NewNode(t, NodeOptions{NoNetwork: true, Config: map[string]string{"root": quote(root)}})
	if log := n.Log(); strings.Count(log, "by walking them") != 1 || !strings.Contains(log, "tune2fs") {
		t.Errorf("the log does not say once how writable layers are measured:\n%s", log)
	}
	n.PullBusybox()
	p := n.PodConfig("plain")
	p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	p.Hostname = ""
	changeLikeAPackageManager(n, n.Run(n.RunPod(p), p, n.ContainerConfig("main", "sleep", "1000"))) // as with a project
	n.RemoveAll()
	n.Stop()
	config, err := os.ReadFile(n.Config)
	if err != nil {
		t.Fatal(err)
	}
	n.WriteFile(n.Config, fmt.Sprintf("writable_layer_limit = %d\n%s", 32*mib, config))
	n.tolerant = true
	n.Start()
	if log := n.Log(); n.Alive() || !strings.Contains(log, "writable_layer_limit") || !strings.Contains(log, "tune2fs -O project,quota") || !strings.Contains(log, root) {
		t.Errorf("crid lives: %v, want it to end with what to do:\n%s", n.Alive(), log)
	}
	n.daemon, n.tolerant = nil, false // it has ended, and was never connected to
	if err := n.log.Close(); err != nil {
		t.Error(err)
	}
	n.WriteFile(n.Config, string(config))
	n.Start()
}
