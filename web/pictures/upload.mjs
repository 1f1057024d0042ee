// Files that were dropped, pasted or chosen, brought to the server by the host's own upload.
const PICTURE = /\.(png|jpe?g|jfif|webp|bmp|tiff?|gif|avif)$/i
const CAPTION = /\.(txt|caption)$/i
const UNFIT = /[|\\/\p{Cc}]/gu // in a name that stands in a list of names

// { pictures, captions: stem -> text, refused: names } of files.
export async function sorted(files) {
  const found = { pictures: /** @type {File[]} */ ([]), captions: new Map(), refused: /** @type {string[]} */ ([]) }
  for (const file of files) {
    if (PICTURE.test(file.name)) found.pictures.push(file)
    else if (CAPTION.test(file.name)) found.captions.set(stem(file.name), (await file.text()).replace(/\s+/g, ' ').trim())
    else found.refused.push(file.name)
  }
  return found
}

// What was dropped: files, and those right inside of folders.
export async function filesOf(data) {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean)
  const inside = entries.filter((entry) => entry.isDirectory).map(filesIn)
  const folders = new Set(entries.filter((entry) => entry.isDirectory).map(({ name }) => name))
  const plain = [...data.files].filter(({ name }) => !folders.has(name))
  return [...plain, ...(await Promise.all(inside)).flat()]
}

async function filesIn(folder) {
  const reader = folder.createReader(), entries = []
  for (let some = [null]; some.length; entries.push(...some)) {
    some = await new Promise((done, fail) => reader.readEntries(done, fail)) // a hundred at a time
  }
  const visible = entries.filter((entry) => entry.isFile && !entry.name.startsWith('.'))
  return Promise.all(visible.map((entry) => new Promise((done, fail) => entry.file(done, fail))))
}

// Answers the name that the server gave it: one that was taken by another picture gets a number.
export async function upload(api, file, folder) {
  const body = new FormData()
  body.append('image', new File([file], file.name.replace(UNFIT, '_').replace(/^[.~]+/, ''), { type: file.type }))
  body.append('subfolder', folder)
  body.append('type', 'input')
  const answer = await api.fetchApi('/upload/image', { method: 'POST', body })
  if (!answer.ok) throw new Error(`${file.name}: ${answer.status} ${answer.statusText}`)
  return (await answer.json()).name
}

// A folder for what comes next: `pictures 2026-11-25 10-45-03`.
export function newFolder() {
  const now = new Date(Date.now() - new Date().getTimezoneOffset() * 60_000).toISOString()
  return `pictures ${now.slice(0, 10)} ${now.slice(11, 19).replaceAll(':', '-')}`
}

export function stem(name) {
  return name.replace(/\.[^.]*$/, '')
}
