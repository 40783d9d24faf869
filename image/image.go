package image

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cridproject/crid/internal/errkind"
)

// ID names an image: "sha256:" and the digest of its configuration. The same
// image has the same ID from every registry and under every name.
type ID string

// Short is the beginning of the ID, for messages read by people.
func (id ID) Short() string {
	hex := strings.TrimPrefix(string(id), "sha256:")
	return hex[:min(12, len(hex))]
}

// hex is the ID as it is in file names.
func (id ID) hex() string { return strings.TrimPrefix(string(id), "sha256:") }

// Image is one image of the store. It is a snapshot and shared: callers must not
// change it.
type Image struct {
	ID          ID
	RepoTags    []string // canonical names with tag, sorted; empty for a pull by digest
	RepoDigests []string // canonical names with the digest that the registry had, sorted
	Size        uint64   // bytes of its files and its configuration; shared layers count in each image
	Config      Config
	UID         *int64 // the user it wants to run as, when that is a number or root
	Username    string // the user otherwise
	Pinned      bool   // not to be removed by kubelet: one of Options.Pinned
	Pulled      time.Time

	Layers     []digest.Digest // diff IDs, lowest first
	LayerSizes []uint64        // bytes of each layer's files
	ChainID    digest.Digest   // of all layers
	ConfigJSON []byte          // the configuration as it came
}

// Config is how the image wants its containers to run.
type Config struct {
	User         string
	Env          []string
	Entrypoint   []string
	Cmd          []string
	WorkingDir   string
	StopSignal   string
	Labels       map[string]string
	Volumes      map[string]struct{}
	ExposedPorts map[string]struct{}
}

// parseConfig reads an image's configuration and checks what the store relies on.
func parseConfig(data []byte) (ocispec.Image, error) {
	var c ocispec.Image
	if err := json.Unmarshal(data, &c); err != nil {
		return c, errkind.Errorf(errkind.Invalid, "image configuration: %w", err)
	}
	if c.OS != "" && c.OS != "linux" {
		return c, errkind.Errorf(errkind.Invalid, "the image is for %s, not for Linux", c.OS)
	}
	if c.RootFS.Type != "" && c.RootFS.Type != "layers" {
		return c, errkind.Errorf(errkind.Invalid, "image configuration: a root file system of type %q is not supported", c.RootFS.Type)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return c, errkind.Errorf(errkind.Invalid, "image configuration: layer %q is not named by a SHA-256 digest", d)
		}
	}
	return c, nil
}

// newImage is what the store publishes of a record. The record's configuration was
// checked when it was made or read.
func newImage(r *record, layers map[digest.Digest]*layer, pinned []Pattern) *Image {
	c, err := parseConfig(r.Config)
	if err != nil {
		panic("image: the checked configuration of " + string(r.ID) + " cannot be read: " + err.Error())
	}
	i := &Image{
		ID: r.ID, Pulled: r.Pulled, Size: uint64(len(r.Config)),
		Layers: r.layers, ChainID: chainID(r.layers), ConfigJSON: r.Config,
		Config: Config{
			User: c.Config.User, Env: c.Config.Env, Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd,
			WorkingDir: c.Config.WorkingDir, StopSignal: c.Config.StopSignal, Labels: c.Config.Labels,
			Volumes: c.Config.Volumes, ExposedPorts: c.Config.ExposedPorts,
		},
	}
	for _, d := range r.layers {
		i.Size += layers[d].meta.Bytes
		i.LayerSizes = append(i.LayerSizes, layers[d].meta.Bytes)
	}
	i.UID, i.Username = imageUser(c.Config.User)
	for _, n := range r.Names {
		if strings.Contains(n.Ref, "@") {
			i.RepoDigests = append(i.RepoDigests, n.Ref)
		} else {
			i.RepoTags = append(i.RepoTags, n.Ref)
		}
	}
	slices.Sort(i.RepoTags)
	slices.Sort(i.RepoDigests)
	i.Pinned = slices.ContainsFunc(pinned, func(p Pattern) bool { return p.Matches(i) })
	return i
}

// RepoDigest is the image's name with the digest that a registry knows it by: of the
// repository of the first of refs that it has one of, else of any, else "". refs are
// names as users write them; what is none is passed over.
func (i *Image) RepoDigest(refs ...string) string {
	for _, s := range refs {
		ref, err := ParseReference(s)
		if err != nil {
			continue
		}
		for _, d := range i.RepoDigests {
			if d == ref.String() || ref.Digest == "" && strings.HasPrefix(d, ref.Name()+"@") {
				return d
			}
		}
	}
	if len(i.RepoDigests) > 0 {
		return i.RepoDigests[0]
	}
	return ""
}

// imageUser is the user as CRI wants it: a number or a name, and 0 for nothing,
// so that kubelet can judge runAsNonRoot. What cannot be a number of a user is a
// name, which kubelet does not take for another user than root.
func imageUser(user string) (uid *int64, name string) {
	user, _, _ = strings.Cut(user, ":")
	if user == "" || user == "root" {
		return new(int64), ""
	}
	if n, err := strconv.ParseUint(user, 10, 32); err == nil {
		uid := int64(n)
		return &uid, ""
	}
	return nil, user
}

// chainID is the OCI image specification's name of a stack of layers.
func chainID(diffIDs []digest.Digest) digest.Digest {
	if len(diffIDs) == 0 {
		return ""
	}
	chain := diffIDs[0]
	for _, d := range diffIDs[1:] {
		chain = digest.FromString(fmt.Sprintf("%s %s", chain, d))
	}
	return chain
}
