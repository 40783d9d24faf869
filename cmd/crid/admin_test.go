package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/metrics"
	"github.com/cridproject/crid/internal/testutil"
)

// archives is a store that takes and gives everything but what begins with "bad".
type archives struct {
	name, content string
	pulling       chan struct{} // a pull of "forever" has begun
	cancelled     chan error    // its end
	empty         bool          // there are no images
}

func (a *archives) Import(_ context.Context, r io.Reader, o image.ImportOptions) ([]image.Image, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(string(data), "bad") {
		return nil, errkind.Errorf(errkind.Invalid, "no archive")
	}
	a.name, a.content = o.Name, string(data)
	return []image.Image{{ID: "sha256:1", RepoTags: []string{"a:1"}, Size: 3}}, nil
}

func (a *archives) List() []image.Image {
	if a.empty {
		return nil
	}
	return []image.Image{{ID: "sha256:2", RepoDigests: []string{"a@sha256:3"}, Size: 4, Pinned: true, Pulled: time.Unix(7, 0).UTC()}}
}

func (a *archives) Check(context.Context) []error { return []error{errors.New("a layer is lost")} }

func (a *archives) Export(_ context.Context, w io.Writer, o image.ExportOptions) error {
	switch o.Images[0] {
	case "bad":
		return errkind.Errorf(errkind.NotFound, "no image bad")
	case "bad later":
		_, err := io.WriteString(w, "some")
		return errors.Join(err, errkind.Errorf(errkind.BadState, "layer %q is damaged\n", "ä"))
	}
	_, err := io.WriteString(w, a.content+string(o.Format)+strings.Join(o.Images, ","))
	return err
}

func (a *archives) Pull(ctx context.Context, r image.PullRequest) (image.ID, error) {
	if r.Ref == "forever" {
		close(a.pulling)
		<-ctx.Done()
		a.cancelled <- ctx.Err()
		return "", ctx.Err()
	}
	return "sha256:2", nil
}

func (a *archives) Verify(_ context.Context, refs []string, _ *image.Progress, report func(image.Verification)) error {
	for _, ref := range refs {
		report(image.Verification{Image: image.Image{ID: image.ID(ref)}, Damage: []image.Damage{{Layer: "l", Path: "/f", What: "w"}}})
	}
	return nil
}

// serveAdmin serves store until the test's end.
func serveAdmin(t *testing.T, store adminStore) (client *adminClient, stop func()) {
	t.Helper()
	path := filepath.Join(socketDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := newAdminServer(klog.NewContext(t.Context(), klog.Background()), store, metrics.New("v", metrics.Sources{}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	client = newAdminClient(path)
	stop = func() {
		client.http.CloseIdleConnections()
		_ = server.Close()
		<-done
	}
	t.Cleanup(stop)
	return client, stop
}

func noLine(adminLine) {}

func TestAdminImport(t *testing.T) {
	testutil.LeakCheck(t)
	store := &archives{}
	client, stop := serveAdmin(t, store)
	send := func(name, content string) ([]imageRow, error) {
		l, err := client.call(t.Context(), importPath, url.Values{"name": {name}}, strings.NewReader(content), noLine)
		return l.Images, err
	}
	content := strings.Repeat("x", 1<<20)
	rows, err := send("n&m", content)
	if err != nil || len(rows) != 1 || rows[0].ID != "sha256:1" || rows[0].Tags[0] != "a:1" {
		t.Errorf("import = %v, %v", rows, err)
	}
	if store.name != "n&m" || store.content != content {
		t.Errorf("the store got name %q and %d bytes", store.name, len(store.content))
	}
	_, err = send("", "bad")
	if !errkind.Is(err, errkind.Invalid) || err.Error() != "no archive" {
		t.Errorf("import of a bad archive = %v (%v), want the store's error", err, errkind.Of(err))
	}
	stop()
	if _, err := send("", ""); err == nil || !strings.Contains(err.Error(), "send request to crid") {
		t.Errorf("import without a server = %v", err)
	}
}

func TestAdminListAndCheck(t *testing.T) {
	client, stop := serveAdmin(t, &archives{})
	defer stop()
	rows, err := client.listImages(t.Context())
	if err != nil || len(rows) != 1 || rows[0].ID != "sha256:2" || rows[0].Tags == nil || rows[0].Digests[0] != "a@sha256:3" || rows[0].Size != 4 ||
		!rows[0].Pinned || rows[0].Pulled.Unix() != 7 {
		t.Errorf("list = %+v, %v", rows, err)
	}
	// What reads the list as JSON expects a list.
	none, _ := serveAdmin(t, &archives{empty: true})
	if rows, err := none.listImages(t.Context()); err != nil || rows == nil || len(rows) > 0 {
		t.Errorf("list of no images = %#v, %v, want an empty list", rows, err)
	}
	problems, err := client.checkImages(t.Context())
	if err != nil || len(problems) != 1 || problems[0] != "a layer is lost" {
		t.Errorf("check = %q, %v", problems, err)
	}
}

func TestAdminExport(t *testing.T) {
	testutil.LeakCheck(t)
	client, _ := serveAdmin(t, &archives{content: strings.Repeat("x", 1<<20)})
	for _, c := range []struct {
		images []string
		size   int // of what comes
		kind   errkind.Kind
		text   string // of the error; "" for none
	}{
		{[]string{"a", "b"}, 1<<20 + len("ocia,b"), 0, ""},
		{[]string{"bad"}, 0, errkind.NotFound, "no image bad"},
		{[]string{"bad later"}, len("some"), errkind.BadState, "layer \"ä\" is damaged\n"},
	} {
		var got bytes.Buffer
		err := client.export(t.Context(), &got, url.Values{"image": c.images, "format": {"oci"}}, func(int64) {})
		if got.Len() != c.size {
			t.Errorf("export of %q gives %d bytes, want %d", c.images, got.Len(), c.size)
		}
		if c.text == "" && err != nil || c.text != "" && (!errkind.Is(err, c.kind) || err.Error() != c.text) {
			t.Errorf("export of %q = %v (%v), want %q of kind %v", c.images, err, errkind.Of(err), c.text, c.kind)
		}
	}
}

func TestAdminPullAndVerify(t *testing.T) {
	testutil.LeakCheck(t)
	store := &archives{pulling: make(chan struct{}), cancelled: make(chan error, 1)}
	client, _ := serveAdmin(t, store)
	l, err := client.call(t.Context(), pullPath, url.Values{"name": {"a"}}, nil, noLine)
	if err != nil || l.ID != "sha256:2" {
		t.Errorf("pull = %+v, %v", l, err)
	}
	var rows []string
	_, err = client.call(t.Context(), verifyPath, url.Values{"image": {"a", "b"}}, nil, func(l adminLine) {
		if l.Verified != nil {
			rows = append(rows, l.Verified.ID+" "+l.Verified.Damage[0].String())
		}
	})
	if want := []string{`a layer l: "/f": w`, `b layer l: "/f": w`}; err != nil || !slices.Equal(rows, want) {
		t.Errorf("verify = %q, %v; want %q", rows, err, want)
	}

	// Who interrupts the command ends the pull.
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-store.pulling
		cancel()
	}()
	if _, err := client.call(ctx, pullPath, url.Values{"name": {"forever"}}, nil, noLine); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted pull = %v", err)
	}
	if err := <-store.cancelled; !errors.Is(err, context.Canceled) {
		t.Errorf("the pull in crid ended with %v", err)
	}
}

// TestAnswerIsCut: a crid that dies in its answer has not done what was asked.
func TestAnswerIsCut(t *testing.T) {
	_, err := readLines(strings.NewReader(`{"steps":[{"name":"a","state":"running","done":1,"total":2}]}`+"\n"), noLine)
	if !errors.Is(err, io.EOF) {
		t.Errorf("readLines of half an answer = %v, want EOF", err)
	}
}

func TestBar(t *testing.T) {
	half := []image.Step{
		{State: image.StepDone, Done: 50e6, Total: 50e6}, {State: image.StepExists, Total: 30e6}, {State: image.StepRunning, Done: 25e6, Total: 100e6},
	}
	unknown := []image.Step{{State: image.StepRunning, Done: 25e6, Total: -1}}
	const name = "pull registry.example/team/app:v1"
	for _, width := range []int{70, 60, 50} {
		got := sum(half).bar(name, 10e9, width)
		if want := map[int]string{
			70: "pull ...try.example/team/app:v1 2 of 3 layers, 75MB of 150MB, 7.5MB/s",
			60: "pull ...e/team/app:v1 2 of 3 layers, 75MB of 150MB, 7.5MB/s",
			50: "pull 2 of 3 layers, 75MB of 150MB, 7.5MB/s",
		}[width]; got != want {
			t.Errorf("bar of a long name in %d columns = %q, want %q", width, got, want)
		}
	}
	for _, c := range []struct {
		steps []image.Step
		width int
		want  string
	}{
		{half, 75, "pull x [=============              ] 2 of 3 layers, 75MB of 150MB, 7.5MB/s"},
		{half, 55, "pull x 2 of 3 layers, 75MB of 150MB, 7.5MB/s"},
		{half, 20, "pull 2 of 3 layers,"},
		{unknown, 80, "pull x 25MB, 2.5MB/s"},
		{half, 0, ""},
	} {
		if got := sum(c.steps).bar("pull x", 10e9, c.width); got != c.want {
			t.Errorf("bar in %d columns = %q, want %q", c.width, got, c.want)
		}
	}
}

// TestArchiveOfFolder: an OCI layout that is a folder is imported as one that is
// an archive.
func TestArchiveOfFolder(t *testing.T) {
	var buf bytes.Buffer
	if err := archiveOf("testdata", &buf); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&buf); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if !slices.Contains(names, "usage.txtar") {
		t.Errorf("the archive has %q, want usage.txtar in it", names)
	}
	if err := archiveOf(filepath.Join("testdata", "absent"), io.Discard); err == nil {
		t.Error("archiveOf an absent folder = nil")
	}
}
