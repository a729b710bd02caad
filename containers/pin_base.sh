#!/bin/sh
# Asks a registry for the digest of the Dockerfile's base image and writes it behind the tag.
# The digest always comes from the registry's answer; without one the file stays as it is.
set -eu
file=$1
image=$(sed -n 's/^ARG BASE=\([^@]*\).*/\1/p' "$file")
case $image in
    *.*/*|*:*/*|localhost/*) full=$image ;;
    */*) full=docker.io/$image ;;
    *) full=docker.io/library/$image ;;
esac
if command -v crane > /dev/null; then
    found=$(crane digest "$full") || found=
elif command -v skopeo > /dev/null; then
    found=$(skopeo inspect --format '{{.Digest}}' "docker://$full") || found=
elif command -v docker > /dev/null; then
    found=$(docker buildx imagetools inspect "$full" --format '{{.Manifest.Digest}}') || found=
else
    echo "pin_base: crane, skopeo or docker is needed to ask the registry" >&2
    exit 2
fi
if ! printf '%s' "$found" | grep -Eq '^sha256:[0-9a-f]{64}$'; then
    echo "pin_base: the registry gave no digest for $image (answer: '$found'); $file is unchanged" >&2
    exit 1
fi
sed -i.bak "s|^ARG BASE=.*|ARG BASE=$image@$found|" "$file" && rm "$file.bak"
echo "$image@$found"
