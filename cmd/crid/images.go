package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os/signal"
	"syscall"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
)

// images is a store of images: that of a running crid, or the folder itself.
// Methods with a bar make it show how far they are.
type images interface {
	Import(ctx context.Context, name string, archive io.Reader, b *bar) ([]imageRow, error)
	Export(ctx context.Context, w io.Writer, images []string, format string, b *bar) error
	List(ctx context.Context) ([]imageRow, error)
	Pull(ctx context.Context, name string, b *bar) (id string, err error)
	// Remove says what it has removed: an image goes with all its names.
	Remove(ctx context.Context, nameOrID string) (imageRow, error)
	// Verify calls report for each image; no image means all.
	Verify(ctx context.Context, images []string, b *bar, report func(*verifiedRow)) error
	Close()
}

// openImages prefers a running crid; without one it takes the folder for itself.
func openImages(ctx context.Context, c Config) (images, error) {
	err := tryConnect(ctx, adminPath(c))
	if err == nil {
		client, err := dialCRI(ctx, c)
		if err != nil {
			return nil, err
		}
		return &daemonImages{newAdminClient(adminPath(c)), client}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("connect to crid: %w", err)
	}
	unlock, err := lockFolder(ctx, "root", c.Root)
	if err != nil {
		if errors.Is(err, sys.ErrLocked) {
			err = fmt.Errorf("%w, which does not answer on %s: it is starting or ending, try again", err, adminPath(c))
		}
		return nil, err
	}
	store, err := openStore(c, nil)
	if err != nil {
		unlock()
		return nil, err
	}
	return &folderImages{store, unlock}, nil
}

// daemonImages is the store of a running crid.
type daemonImages struct {
	admin *adminClient
	cri   *criClient
}

func (d *daemonImages) Import(ctx context.Context, name string, archive io.Reader, b *bar) ([]imageRow, error) {
	l, err := d.admin.call(ctx, importPath, url.Values{"name": {name}}, archive, showSteps(b))
	return l.Images, err
}

// showSteps shows the steps of an answer's lines, from the first on.
func showSteps(b *bar) func(adminLine) {
	var set func([]image.Step)
	return func(l adminLine) {
		if set == nil {
			set = b.latest()
		}
		set(l.Steps)
	}
}

func (d *daemonImages) Export(ctx context.Context, w io.Writer, images []string, format string, b *bar) error {
	c := &counter{w: w, size: -1}
	b.follow(c.steps)
	return d.admin.export(ctx, c, url.Values{"image": images, "format": {format}}, c.setSize)
}

func (d *daemonImages) List(ctx context.Context) ([]imageRow, error) {
	return d.admin.listImages(ctx)
}

func (d *daemonImages) Pull(ctx context.Context, name string, b *bar) (string, error) {
	l, err := d.admin.call(ctx, pullPath, url.Values{"name": {name}}, nil, showSteps(b))
	return l.ID, err
}

func (d *daemonImages) Remove(ctx context.Context, ref string) (imageRow, error) {
	spec := &cri.ImageSpec{Image: ref}
	s, err := d.cri.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec})
	i := s.GetImage()
	if err == nil && i == nil {
		return imageRow{}, noImage(ref)
	}
	if err == nil {
		_, err = d.cri.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec})
	}
	return imageRow{ID: i.GetId(), Tags: i.GetRepoTags(), Digests: i.GetRepoDigests()}, plainStatus(err)
}

func (d *daemonImages) Verify(ctx context.Context, images []string, b *bar, report func(*verifiedRow)) error {
	show := showSteps(b)
	_, err := d.admin.call(ctx, verifyPath, url.Values{"image": images}, nil, func(l adminLine) {
		if l.Verified != nil {
			report(l.Verified)
		} else {
			show(l)
		}
	})
	return err
}

func (d *daemonImages) Close() { d.cri.close() }

// folderImages is the store in the folder of root, while no crid runs.
type folderImages struct {
	store  *image.Store
	unlock func()
}

// shown is progress that the bar shows as soon as there is some.
func shown(b *bar) *image.Progress {
	p := &image.Progress{}
	b.follow(p.Steps)
	return p
}

func (f *folderImages) Import(ctx context.Context, name string, archive io.Reader, b *bar) ([]imageRow, error) {
	p := &image.Progress{}
	before := b.source()
	b.follow(func() []image.Step { // the archive's own count until layers are unpacked
		if steps := p.Steps(); len(steps) > 0 || before == nil {
			return steps
		}
		return before()
	})
	found, err := f.store.Import(ctx, archive, image.ImportOptions{Name: name, Progress: p})
	return imageRows(found), err
}

func (f *folderImages) Export(ctx context.Context, w io.Writer, images []string, format string, b *bar) error {
	return f.store.Export(ctx, w, image.ExportOptions{Images: images, Format: image.ExportFormat(format), Progress: shown(b)})
}

func (f *folderImages) List(context.Context) ([]imageRow, error) {
	return imageRows(f.store.List()), nil
}

func (f *folderImages) Pull(ctx context.Context, name string, b *bar) (string, error) {
	id, err := f.store.Pull(ctx, image.PullRequest{Ref: name, Progress: shown(b)})
	return string(id), err
}

func (f *folderImages) Remove(ctx context.Context, ref string) (imageRow, error) {
	i, err := f.store.Image(ref)
	if errkind.Is(err, errkind.NotFound) {
		err = noImage(ref)
	}
	if err != nil {
		return imageRow{}, err
	}
	return imageRows([]image.Image{i})[0], f.store.Remove(ctx, ref)
}

func (f *folderImages) Verify(ctx context.Context, images []string, b *bar, report func(*verifiedRow)) error {
	return f.store.Verify(ctx, images, shown(b), func(v image.Verification) { report(newVerifiedRow(v)) })
}

func (f *folderImages) Close() {
	_ = f.store.Close()
	f.unlock()
}

// imageArgs are the arguments of one `crid image` command.
type imageArgs struct {
	rest              []string
	name, out, format string
	json, digests     bool
}

// imageCommands are the commands of `crid image`.
var imageCommands = map[string]struct {
	takes    string // in words; "" means no arguments
	min, max int    // of arguments; max 0 means any number
	do       func(program, context.Context, images, imageArgs) error
}{
	"export": {"names or IDs of images", 1, 0, program.exportImages},
	"import": {"one archive or folder, or - for standard input", 1, 1, program.importImage},
	"list":   {"", 0, 0, program.listImages},
	"pull":   {"one name", 1, 1, program.pullImage},
	"remove": {"names or IDs", 1, 0, program.removeImages},
	"verify": {"names or IDs of images, or none for all", 0, 0, program.verifyImages},
}

// imageCommand checks the arguments of `crid image`.
func (p program) imageCommand(args []string) (action, error) {
	const commands = "export, import, list, pull, remove and verify"
	if len(args) == 0 {
		return nil, usagef("`crid image` takes a command: there are %s", commands)
	}
	if err := flagsFirst("image", args); err != nil {
		return nil, err
	}
	command, known := imageCommands[args[0]]
	if !known {
		return nil, usagef("unknown command %q of `crid image`; there are %s", args[0], commands)
	}
	var a imageArgs
	flags := newFlags("crid image " + args[0])
	switch args[0] {
	case "import":
		flags.StringVar(&a.name, "name", "", "")
	case "export":
		flags.StringVar(&a.out, "o", "-", "")
		flags.StringVar(&a.format, "format", string(image.FormatOCI), "")
	case "list":
		flags.BoolVar(&a.json, "json", false, "")
		flags.BoolVar(&a.digests, "digests", false, "")
	}
	var err error
	if a.rest, err = parseAnywhere(flags, args[1:]); err != nil {
		return nil, err
	}
	n := len(a.rest)
	switch {
	case command.takes == "" && n > 0:
		return nil, noArguments("image "+args[0], a.rest)
	case n < command.min || command.max > 0 && n > command.max:
		return nil, usagef("`crid image %s` takes %s, but was given %d arguments", args[0], command.takes, n)
	case a.format != "" && a.format != string(image.FormatOCI) && a.format != string(image.FormatDocker):
		return nil, usagef("crid image export: --format is %q; there are %s and %s", a.format, image.FormatOCI, image.FormatDocker)
	}
	return configured(func(ctx context.Context, c Config) error {
		ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		store, err := openImages(ctx, c)
		if err != nil {
			return err
		}
		defer store.Close()
		if err = command.do(p, ctx, store, a); err != nil && ctx.Err() != nil {
			return errors.New("interrupted")
		}
		return err
	}), nil
}

func (p program) pullImage(ctx context.Context, store images, a imageArgs) error {
	b := p.showProgress("pull " + a.rest[0])
	defer b.stop()
	id, err := store.Pull(ctx, a.rest[0], b)
	b.stop()
	if err == nil {
		fmt.Fprintf(p.out, "%s %s\n", id, a.rest[0])
	}
	return err
}
