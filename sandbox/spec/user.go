package spec

import (
	"bytes"
	"errors"
	"io"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cridproject/crid/sandbox/config"
)

// User is who a container's first process runs as.
type User struct {
	UID, GID int64
	Groups   []int64 // supplementary groups, the primary one first
	Home     string  // of the image's /etc/passwd; / when it says nothing
	Name     string  // "" when the image's /etc/passwd has no entry
}

// resolveUser decides user and groups.
func resolveUser(b *builder) error {
	u, err := ResolveUser(b.Container.Security, b.Image.User, b.Passwd, b.Group)
	if err != nil {
		return err
	}
	b.User = u
	su := specs.User{UID: uint32(u.UID), GID: uint32(u.GID)} //nolint:gosec // checked by parseID
	for _, g := range u.Groups {
		su.AdditionalGids = append(su.AdditionalGids, uint32(g)) //nolint:gosec // as above
	}
	b.Spec.Process.User = su
	return nil
}

// ResolveUser finds out who a container runs as: the request's user, by number
// or name, else the image's ("user", "user:group", names or numbers), else root.
// Names are looked up in the image's passwd and group, which may be nil.
//
// Under policy merge the groups in which the image's group file lists the user
// are added to those of the request; under strict they are not.
func ResolveUser(sec config.Security, imageUser string, passwd, group []byte) (User, error) {
	w, err := wantedUser(sec, imageUser)
	if err != nil {
		return User{}, err
	}
	u := User{Home: "/"}
	if err := w.lookupUser(&u, passwd); err != nil {
		return User{}, err
	}
	if err := w.lookupGroup(&u, group); err != nil {
		return User{}, err
	}

	u.Groups = []int64{u.GID}
	if sec.GroupsPolicy != config.GroupsStrict && u.Name != "" {
		member := func(g user.Group) bool { return isID(g.Gid) && slices.Contains(g.List, u.Name) }
		for _, g := range parseGroups(group, member) {
			u.addGroup(int64(g.Gid))
		}
	}
	for i, g := range sec.SupplementalGroups {
		if g < 0 || g > math.MaxInt32 {
			return User{}, invalid(fieldSecurity+"supplemental_groups["+strconv.Itoa(i)+"]", "%d is no group ID", g)
		}
		u.addGroup(g)
	}
	return u, nil
}

func (u *User) addGroup(g int64) {
	if !slices.Contains(u.Groups, g) {
		u.Groups = append(u.Groups, g)
	}
}

// wanted is a user and group as asked for, each with the field to blame.
type wanted struct {
	user, userField   string
	group, groupField string // group "" means the user's own
}

func wantedUser(sec config.Security, imageUser string) (wanted, error) {
	w := wanted{userField: fieldSecurity + "run_as_user", groupField: fieldSecurity + "run_as_group"}
	switch {
	case sec.RunAsUser != nil && sec.RunAsUsername != "":
		return w, invalid(fieldSecurity+"run_as_username", "run_as_user is given too; only one of them may be")
	case sec.RunAsUser != nil:
		w.user = strconv.FormatInt(*sec.RunAsUser, 10)
	case sec.RunAsUsername != "":
		w.user, w.userField = sec.RunAsUsername, fieldSecurity+"run_as_username"
	case sec.RunAsGroup != nil:
		return w, invalid(w.groupField, "needs run_as_user or run_as_username beside it")
	default:
		w.user, w.group, _ = strings.Cut(imageUser, ":")
		w.userField, w.groupField = "user of the image", "group of the image"
		if w.user == "" {
			w.user = "0"
		}
	}
	if sec.RunAsGroup != nil {
		w.group = strconv.FormatInt(*sec.RunAsGroup, 10)
	}
	return w, nil
}

// lookupUser fills in what passwd says. A number need not be in it.
func (w wanted) lookupUser(u *User, passwd []byte) error {
	id, isNumber, err := parseID(w.userField, w.user)
	if err != nil {
		return err
	}
	matches := func(e user.User) bool {
		if isNumber {
			return int64(e.Uid) == id
		}
		return e.Name == w.user
	}
	// A line that cannot be read is skipped by the parser; an error can only
	// come from a line without end, which is as good as no file.
	entries, _ := user.ParsePasswdFilter(reader(passwd), matches)
	switch {
	case len(entries) > 0:
		e := entries[0]
		if !isID(e.Uid) || !isID(e.Gid) {
			return invalid(w.userField, "%q has user ID %d and group ID %d in the image's /etc/passwd, which are not between 0 and %d",
				w.user, e.Uid, e.Gid, math.MaxInt32)
		}
		u.UID, u.GID, u.Name = int64(e.Uid), int64(e.Gid), e.Name
		if path.IsAbs(e.Home) {
			u.Home = e.Home
		}
	case isNumber:
		u.UID = id
	case passwd == nil:
		return invalid(w.userField, "%q cannot be looked up: the image has no /etc/passwd", w.user)
	default:
		return invalid(w.userField, "no user %q in the image's /etc/passwd", w.user)
	}
	return nil
}

// lookupGroup sets the primary group, where another than passwd's is asked for.
func (w wanted) lookupGroup(u *User, group []byte) error {
	if w.group == "" {
		return nil
	}
	id, isNumber, err := parseID(w.groupField, w.group)
	if err != nil {
		return err
	}
	if isNumber {
		u.GID = id
		return nil
	}
	found := parseGroups(group, func(g user.Group) bool { return g.Name == w.group })
	if len(found) == 0 {
		return invalid(w.groupField, "no group %q in the image's /etc/group", w.group)
	}
	if !isID(found[0].Gid) {
		return invalid(w.groupField, "%q is %d in the image's /etc/group, which is not between 0 and %d", w.group, found[0].Gid, math.MaxInt32)
	}
	u.GID = int64(found[0].Gid)
	return nil
}

// parseID reads a user or group ID. The largest is 2^31-1: file systems and
// tools disagree about larger ones. What is no number is a name.
func parseID(field, s string) (id int64, isNumber bool, err error) {
	id, err = strconv.ParseInt(s, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, false, nil
	}
	if err != nil || !isID(id) {
		return 0, true, invalid(field, "%s is not between 0 and %d", s, math.MaxInt32)
	}
	return id, true, nil
}

// isID: the kernel has 32 bits, and what does not fit would come to mean another
// user, such as root.
func isID[T int | int64](n T) bool { return n >= 0 && n <= math.MaxInt32 }

func parseGroups(group []byte, filter func(user.Group) bool) []user.Group {
	found, _ := user.ParseGroupFilter(reader(group), filter)
	return found
}

func reader(data []byte) io.Reader { return bytes.NewReader(data) }
