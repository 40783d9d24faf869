package cri

import (
	"context"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/internal/errkind"
)

// PullImage has no deadline from kubelet: it ends when the image is there, when
// nothing moves any more, or when the client goes away.
func (s *Server) PullImage(ctx context.Context, r *v1.PullImageRequest) (*v1.PullImageResponse, error) {
	d := s.decoder()
	wanted := d.image("image", r.GetImage())
	if err := d.err(); err != nil {
		return nil, err
	}
	id, err := s.o.Images.Pull(ctx, image.PullRequest{Ref: wanted.Ref, Auth: decodeAuth(r.GetAuth())})
	if err != nil {
		return nil, err
	}
	// The image's ID, never a digest of the repository: it must equal Image.id.
	return &v1.PullImageResponse{ImageRef: string(id)}, nil
}

// decodeAuth passes credentials on. The store makes sense of them.
func decodeAuth(a *v1.AuthConfig) *image.Auth {
	if a == nil {
		return nil
	}
	return &image.Auth{
		Username:      a.GetUsername(),
		Password:      a.GetPassword(),
		Auth:          a.GetAuth(),
		ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(),
		RegistryToken: a.GetRegistryToken(),
	}
}

// ListImages lists all images, or the one that the filter names.
func (s *Server) ListImages(_ context.Context, r *v1.ListImagesRequest) (*v1.ListImagesResponse, error) {
	all, err := s.images(r.GetFilter())
	if err != nil {
		return nil, err
	}
	resp := &v1.ListImagesResponse{}
	for i := range all {
		resp.Images = append(resp.Images, encodeImage(&all[i]))
	}
	return resp, nil
}

// images is those that the filter lets through.
func (s *Server) images(f *v1.ImageFilter) ([]image.Image, error) {
	spec := f.GetImage()
	if spec.GetImage() == "" {
		return s.o.Images.List(), nil
	}
	img, err := s.findImage("filter.image", spec)
	if img == nil || err != nil {
		return nil, err
	}
	return []image.Image{*img}, nil
}

// ImageStatus of an image that is not there is an empty answer.
func (s *Server) ImageStatus(_ context.Context, r *v1.ImageStatusRequest) (*v1.ImageStatusResponse, error) {
	img, err := s.findImage("image", r.GetImage())
	if img == nil || err != nil {
		return &v1.ImageStatusResponse{}, err
	}
	resp := &v1.ImageStatusResponse{Image: encodeImage(img)}
	if r.GetVerbose() {
		resp.Info = imageInfo(img)
	}
	return resp, nil
}

// findImage returns nil for an image that is not there.
func (s *Server) findImage(field string, spec *v1.ImageSpec) (*image.Image, error) {
	d := s.decoder()
	wanted := d.image(field, spec)
	if err := d.err(); err != nil {
		return nil, err
	}
	img, err := s.o.Images.Image(wanted.Ref)
	if errkind.Is(err, errkind.NotFound) {
		return nil, nil
	}
	return &img, err
}

// RemoveImage removes an image with all its names. One that is not there is
// removed already.
func (s *Server) RemoveImage(ctx context.Context, r *v1.RemoveImageRequest) (*v1.RemoveImageResponse, error) {
	d := s.decoder()
	unwanted := d.image("image", r.GetImage())
	if err := d.err(); err != nil {
		return nil, err
	}
	if err := s.o.Images.Remove(ctx, unwanted.Ref); err != nil && !errkind.Is(err, errkind.NotFound) {
		return nil, err
	}
	return &v1.RemoveImageResponse{}, nil
}

// ImageFsInfo is one of the two RPCs by which kubelet finds out that a runtime is
// there. It looks at the mount points itself, so they are paths of the node.
func (s *Server) ImageFsInfo(ctx context.Context, _ *v1.ImageFsInfoRequest) (*v1.ImageFsInfoResponse, error) {
	fs, err := s.o.Images.FsInfo(ctx)
	if err != nil {
		return nil, err
	}
	return &v1.ImageFsInfoResponse{
		ImageFilesystems:     []*v1.FilesystemUsage{encodeFs(fs.Images)},
		ContainerFilesystems: []*v1.FilesystemUsage{encodeFs(fs.Containers)},
	}, nil
}

func encodeFs(u image.FsUsage) *v1.FilesystemUsage {
	at := u.At
	if at.IsZero() {
		at = time.Now() // kubelet takes figures without a time for none
	}
	return &v1.FilesystemUsage{
		Timestamp:  at.UnixNano(),
		FsId:       &v1.FilesystemIdentifier{Mountpoint: u.Mountpoint},
		UsedBytes:  &v1.UInt64Value{Value: u.UsedBytes},
		InodesUsed: &v1.UInt64Value{Value: u.Inodes},
	}
}
