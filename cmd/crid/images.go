package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
)

// images is a store of images: that of a running crid, or the folder itself.
type images interface {
	Import(ctx context.Context, name string, archive io.Reader) ([]imageRow, error)
	List(ctx context.Context) ([]imageRow, error)
	Pull(ctx context.Context, name string) (id string, err error)
	// Remove says what it has removed: an image goes with all its names.
	Remove(ctx context.Context, nameOrID string) (imageRow, error)
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
	store, err := openStore(c)
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

func (d *daemonImages) Import(ctx context.Context, name string, archive io.Reader) ([]imageRow, error) {
	return d.admin.importImages(ctx, name, archive)
}

func (d *daemonImages) List(ctx context.Context) ([]imageRow, error) {
	return d.admin.listImages(ctx)
}

func (d *daemonImages) Pull(ctx context.Context, name string) (string, error) {
	r, err := d.cri.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name}})
	return r.GetImageRef(), plainStatus(err)
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

func (d *daemonImages) Close() { d.cri.close() }

// folderImages is the store in the folder of root, while no crid runs.
type folderImages struct {
	store  *image.Store
	unlock func()
}

func (f *folderImages) Import(ctx context.Context, name string, archive io.Reader) ([]imageRow, error) {
	found, err := f.store.Import(ctx, archive, image.ImportOptions{Name: name})
	return imageRows(found), err
}

func (f *folderImages) List(context.Context) ([]imageRow, error) {
	return imageRows(f.store.List()), nil
}

func (f *folderImages) Pull(ctx context.Context, name string) (string, error) {
	id, err := f.store.Pull(ctx, image.PullRequest{Ref: name})
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

func (f *folderImages) Close() {
	_ = f.store.Close()
	f.unlock()
}

// imageCommand checks the arguments of `crid image`.
func (p program) imageCommand(args []string) (action, error) {
	if len(args) == 0 {
		return nil, usagef("`crid image` takes a command: import, list, pull or remove")
	}
	flags := newFlags("crid image " + args[0])
	name, asJSON, digests := "", false, false
	switch args[0] {
	case "import":
		flags.StringVar(&name, "name", "", "")
	case "list":
		flags.BoolVar(&asJSON, "json", false, "")
		flags.BoolVar(&digests, "digests", false, "")
	}
	rest, err := parseFlags(flags, args[1:])
	if err != nil {
		return nil, err
	}
	needs := map[string]string{"import": "one archive, or - for standard input", "list": "", "pull": "one name", "remove": "names or IDs"}
	what, known := needs[args[0]]
	switch {
	case !known:
		return nil, usagef("unknown command %q of `crid image`; there are import, list, pull and remove", args[0])
	case what == "" && len(rest) > 0:
		return nil, noArguments("image "+args[0], rest)
	case args[0] == "remove" && len(rest) > 0:
	case what != "" && len(rest) != 1:
		return nil, usagef("`crid image %s` takes %s, but was given %d arguments", args[0], what, len(rest))
	}
	return configured(func(ctx context.Context, c Config) error {
		store, err := openImages(ctx, c)
		if err != nil {
			return err
		}
		defer store.Close()
		switch args[0] {
		case "import":
			return p.importImage(ctx, store, name, rest[0])
		case "pull":
			id, err := store.Pull(ctx, rest[0])
			if err == nil {
				fmt.Fprintf(p.out, "%s %s\n", id, rest[0])
			}
			return err
		case "remove":
			return p.removeImages(ctx, store, rest)
		}
		return p.listImages(ctx, store, asJSON, digests)
	}), nil
}

func (p program) importImage(ctx context.Context, store images, name, file string) error {
	archive := p.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("open archive: %w", err)
		}
		defer f.Close()
		archive = f
	}
	rows, err := store.Import(ctx, name, archive)
	if err != nil {
		return fmt.Errorf("import %s: %w", file, err)
	}
	for _, r := range rows {
		fmt.Fprintf(p.out, "%s %s\n", r.ID, strings.Join(r.Tags, " "))
	}
	return nil
}
