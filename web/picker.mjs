export function picker() {
  return {}
}
